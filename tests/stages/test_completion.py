"""Completion: the candidates of every place in a command line, and the script of each shell in that shell."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_run import REPOSITORY

from pipeline.data import image_sets
from stages.commands import COMMANDS
from stages.completion import IMAGE_KINDS, SCRIPTS, candidates


def test_first_word_is_a_command():
    assert candidates([""]) == [command.name for command in COMMANDS]
    assert candidates(["ver"]) == ["verify"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--p"], ["--processes"]),
        (["imagenet-val", "--t"], ["--tar"]),
        (["run", "--device", ""], ["cpu", "cuda"]),
        (["run", "--config", "imagenet_r"], ["imagenet_resnet50", "imagenet_resnet50_self"]),
        (["run", "synth"], ["synthesis."]),
        (["run", "--dry-run", "synthesis.num_"], ["synthesis.num_images="]),
        (["run", "seed=1", "synthesis.inversion.phases."], ["synthesis.inversion.phases.0."]),
        (["run", "seed="], []),
        (
            ["run", "synthesis.inversion.basis="],
            ["synthesis.inversion.basis=pixels", "synthesis.inversion.basis=fourier"],
        ),
        (["run", "distill.augment.flip=t"], ["distill.augment.flip=true"]),
        (["help", "synthesis.inversion.l"], ["synthesis.inversion.lr", "synthesis.inversion.log_every"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nothing", ""], []),
        (["run", "--round", ""], []),
    ],
)
def test_candidates_fit_their_place(words, expected):
    assert candidates(words) == expected


def test_files_and_folders_complete_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mine.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.yaml").touch()
    assert candidates(["run", "--config", "m"]) == ["mine.yaml", "more/"]
    assert candidates(["run", "--config", "more/"]) == ["more/other.yaml"]
    assert candidates(["imagenet-val", "--tar", "mi"]) == ["mine.txt", "mine.yaml"]
    assert candidates(["run", "--config", "nowhere/"]) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert candidates(["run", "--config", "~/more/"]) == ["~/more/other.yaml"]


def test_sources_complete_their_kind_and_then_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits.npz", "digits.tar", "net.py", "net.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    for typed, expected in {
        "data.test=n": ["npz:"],
        "data.test=t": ["torchvision:", "tar:"],
        "data.test=npz:": ["data/", "digits.npz"],
        "data.train=tar:dig": ["digits.tar"],
        "data.test=imagefolder:d": ["data/"],
        "data.test=sklearn:": [],
        "student.source=p": ["python:"],
        "ensemble.0.source=python:n": ["net.py"],
        "teacher.weights=net": ["net.py", "net.safetensors"],
    }.items():
        start = typed[: max(typed.rfind(mark) for mark in "=:") + 1]
        assert candidates(["run", typed]) == [start + rest for rest in expected]


def test_kinds_of_images_are_those_of_the_library():
    assert IMAGE_KINDS == image_sets.KINDS


def test_own_configs_and_runs_complete_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "checkpoints/first", "checkpoints/second"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs" / "dimmer.yaml").touch()
    assert candidates(["run", "--config", "di"]) == ["digits", "dimmer"]
    assert candidates(["compare", "first", "s"]) == ["second"]
    assert candidates(["compare", "checkpoints/f"]) == ["checkpoints/first/"]


@pytest.fixture
def program(tmp_path):
    """A folder with a program `dreamdistill`."""
    path = tmp_path / "dreamdistill"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m stages "$@"\n')
    path.chmod(0o755)
    return tmp_path


def output_of(shell: str, code: str, program) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        [shell, "-c", code], env=os.environ | {"PATH": path}, cwd=program, capture_output=True, text=True
    )
    assert process.stderr == ""
    return process.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dreamdistill syn", ["synthesize"]),
        ("dreamdistill synthesize --dr", ["--dry-run"]),
        ("dreamdistill run --config digi", ["digits"]),
        ("dreamdistill run --round ", []),
        ("dreamdistill run distill.pre", ["distill.precision="]),
        ("dreamdistill run seed=1 distill.precision=b", ["bfloat16"]),  # bash replaces what follows the =
        ("dreamdistill run distill.lr=", []),
        ("dreamdistill run data.test=np", ["npz:"]),
        ("dreamdistill run data.test=npz:di", ["digits.npz"]),  # and what follows the :
        ("dreamdistill run --config my\\ con", ["my\\ configs/"]),
        ("dreamdistill ", [command.name for command in COMMANDS]),
    ],
)
def test_bash_offers_the_candidates(program, line, expected):
    (program / "my configs").mkdir()
    (program / "digits.npz").touch()
    code = f"""
eval "$(dreamdistill completion bash)"
compopt() {{ :; }}  # outside of a completion it is an error
COMP_LINE='{line}' COMP_POINT={len(line)}
read -ra COMP_WORDS <<< "$COMP_LINE"
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_dreamdistill dreamdistill
[ ${{#COMPREPLY[@]}} -eq 0 ] || printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert output_of("bash", code, program) == expected


# The words after `run`, as they are typed, and the candidates.
TYPED = [("distill.pre", ["distill.precision="]), ("--config my\\ con", ["my configs/"])]


@pytest.mark.parametrize(("words", "expected"), TYPED)
def test_fish_offers_the_candidates(program, words, expected):
    (program / "my configs").mkdir()
    code = f"dreamdistill completion fish | source; complete --do-complete 'dreamdistill run {words}'"
    assert output_of("fish", code, program) == expected


@pytest.mark.parametrize(("words", "expected"), TYPED)
def test_zsh_offers_the_candidates(program, words, expected):
    (program / "my configs").mkdir()
    code = f"""
autoload -Uz compinit && compinit -D
eval "$(dreamdistill completion zsh)"
compadd() {{ [ "$1" = -S ] && shift 2; shift; [ $# -eq 0 ] || print -l -- "$@" }}
line='dreamdistill run {words}'
words=("${{(@z)line}}") CURRENT=$#words
_dreamdistill
"""
    assert output_of("zsh", code, program) == expected


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_script_is_printed_by_the_command(program, shell):
    assert output_of("sh", f"dreamdistill completion {shell}", program) == SCRIPTS[shell].splitlines()
