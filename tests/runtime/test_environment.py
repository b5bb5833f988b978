"""The environment of the process: torchrun's variables, the device, the threads."""

import getpass
import os
from pathlib import Path

import pytest

from pipeline.runtime import environment
from pipeline.runtime.environment import (
    cache_folder,
    is_rank_zero,
    is_under_torchrun,
    launcher_reports_errors,
    name_device,
    name_user,
    named_device,
    named_num_threads,
    prepare_launch,
    ranks_of_torchrun,
)


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """An empty environment."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


def test_single_process_is_rank_zero_of_one():
    assert ranks_of_torchrun() == (0, 1, 0, 1)
    assert is_rank_zero()
    assert not is_under_torchrun()


def test_ranks_are_those_of_torchrun(variables):
    variables |= {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert ranks_of_torchrun() == (5, 8, 1, 4)
    assert is_under_torchrun()
    assert not is_rank_zero()


@pytest.mark.parametrize(("named", "expected"), [({}, 4), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_launched_ranks_have_the_named_number_of_threads_or_their_share(variables, named, expected):
    variables |= named
    prepare_launch(4)
    assert named_num_threads() == expected
    assert launcher_reports_errors()


@pytest.mark.parametrize("text", ["0", "-1", "many", ""])
def test_invalid_number_of_threads_raises(variables, text):
    variables["OMP_NUM_THREADS"] = text
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS={text} is not a number of threads; use 1 or more"):
        named_num_threads()


def test_named_device_replaces_that_of_the_variable(variables):
    assert named_device() is None
    variables[environment.DEVICE] = "cuda"
    name_device("cuda:1")
    assert named_device() == "cuda:1"


def test_user_without_a_name_and_a_home_has_both(variables, monkeypatch):
    def fail(uid):
        raise KeyError(uid)

    name_user()
    assert "USER" not in variables
    monkeypatch.setattr("pwd.getpwuid", fail)
    name_user()
    assert getpass.getuser() == str(os.getuid())
    assert cache_folder().is_absolute()
    variables["XDG_CACHE_HOME"] = "/cache"
    assert cache_folder() == Path("/cache/dreamdistill")
