"""The targets and variables of the Makefile, as the commands that `make -n` prints."""

import os
import subprocess

import pytest
from tiny_run import REPOSITORY

from stages.commands import COMMANDS, CommandParser

DIGITS = "--config 'configs/digits.yaml'"


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


STAGES = [c.name for c in COMMANDS if c.name != "run" and "--device" in CommandParser(c).options]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_target(stage):
    assert make_commands(stage, PYTHON="python3") == [f"python3 -m stages {stage} {DIGITS}"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_other_command_is_one_too(command):
    target = {"run": "all"}.get(command.name, command.name)
    if command.name != "completion":  # of `dreamdistill`, which make does not have
        assert make_commands(target, PYTHON="p")


def test_default_target_is_the_chain():
    assert make_commands("all", PYTHON="python3") == [f"python3 -m stages run {DIGITS}"]


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"CONFIG": "my configs/x.yaml"}, "--config 'my configs/x.yaml'"),
        ({"SET": "seed=1 distill.steps=10"}, f"{DIGITS} seed=1 distill.steps=10"),
        ({"ROUND": "0"}, f"{DIGITS} --round 0"),
        ({"NPROC": "1"}, DIGITS),
        ({"DEVICE": "cuda:1"}, f"{DIGITS} --device cuda:1"),
        ({"DRY_RUN": "1"}, f"{DIGITS} --dry-run"),
        ({"NPROC": "4", "ROUND": "2", "SET": "seed=1"}, f"{DIGITS} seed=1 --round 2 --processes 4"),
    ],
)
def test_variables_become_arguments(variables, arguments):
    assert make_commands("synthesize", PYTHON="p", **variables) == [f"p -m stages synthesize {arguments}"]


def test_files_and_folders_are_passed_on():
    commands = make_commands("imagenet-val", PYTHON="p", TAR="my a.tar", DEVKIT="b.tar.gz", FOLDER="val")
    assert commands == ["p -m stages imagenet-val --tar 'my a.tar' --devkit 'b.tar.gz' --folder 'val'"]
    commands = make_commands("unpack", PYTHON="p", CONFIG="my x.yaml", FOLDER="my folder")
    assert commands == ["p -m stages unpack --config 'my x.yaml' --folder 'my folder'"]


def test_environment_is_made_only_without_python():
    assert "venv" not in " ".join(make_commands("test", PYTHON="p"))
    assert make_commands("test")[-1] == ".venv/bin/python -m pytest --numprocesses 2"
