"""The targets and variables of the Makefile, as the commands that `make -n` prints."""

import os
import subprocess

import pytest
from tiny_run import REPOSITORY


def make_commands(target: str, **variables: str) -> list[str]:
    """The commands of a target, independent of the variables of a `make` that runs the tests."""
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    outer = {
        *of_make,
        "ARGS",
        "PYTHON",
        "CONFIG",
        "SET",
        "ROUND",
        "NPROC",
        "DEVICE",
        "DRY_RUN",
        "TAR",
        "DEVKIT",
        "FOLDER",
    }
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    arguments = [f"{name}={value}" for name, value in variables.items()]
    result = subprocess.run(
        ["make", "-n", target, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "stage", ["estimate", "teacher", "synthesize", "distill", "evaluate", "report", "verify", "clean"]
)
def test_every_stage_is_a_target(stage):
    assert make_commands(stage, PYTHON="python3") == [f"python3 -m stages {stage} --config configs/digits.yaml"]


def test_default_target_is_the_chain():
    assert make_commands("all", PYTHON="python3") == ["python3 -m stages run --config configs/digits.yaml"]


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"CONFIG": "configs/x.yaml"}, "p -m stages synthesize --config configs/x.yaml"),
        (
            {"SET": "seed=1 distill.steps=10"},
            "p -m stages synthesize --config configs/digits.yaml seed=1 distill.steps=10",
        ),
        ({"ROUND": "0"}, "p -m stages synthesize --config configs/digits.yaml --round 0"),
        ({"NPROC": "1"}, "p -m stages synthesize --config configs/digits.yaml"),
        ({"DEVICE": "cuda:1"}, "p -m stages synthesize --config configs/digits.yaml --device cuda:1"),
        ({"DRY_RUN": "1"}, "p -m stages synthesize --config configs/digits.yaml --dry-run"),
        (
            {"NPROC": "4", "ROUND": "2", "SET": "seed=1"},
            "p -m stages synthesize --config configs/digits.yaml seed=1 --round 2 --processes 4",
        ),
    ],
)
def test_variables_become_arguments(variables, command):
    assert make_commands("synthesize", PYTHON="p", **variables) == [command]


def test_imagenet_val_passes_its_files_on():
    commands = make_commands("imagenet-val", PYTHON="p", TAR="a.tar", DEVKIT="b.tar.gz")
    assert commands == ["p -m stages imagenet-val --tar a.tar --devkit b.tar.gz"]
    assert make_commands("imagenet-val", PYTHON="p", FOLDER="val") == ["p -m stages imagenet-val --folder val"]


def test_environment_is_made_only_without_python():
    assert "venv" not in " ".join(make_commands("test", PYTHON="p"))
    assert make_commands("test")[-1] == ".venv/bin/python -m pytest --numprocesses 2"
