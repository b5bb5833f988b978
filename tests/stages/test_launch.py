"""`--processes`: mistakes are reported once, before there are ranks, and a failed rank in one line."""

import logging
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    REPOSITORY,
    copy_run,
    digests,
    run_command,
    run_in_process,
    stage_command,
    tiny_config,
    write_config,
)

from benchmarks.sleepy_network import sleepy_teacher
from pipeline.data.parts import list_parts
from pipeline.data.shards import CONFIG_FILE
from pipeline.distillation.state import TrainState, state_path
from pipeline.identity import student_identity
from pipeline.models.classifier import load_frozen
from pipeline.run import load_run
from pipeline.runtime.locks import exclusive_lock
from pipeline.session import build_student
from stages import launch, synthesize
from stages.command_line import run

MANY_STEPS = {"distill__steps": 100_000, "distill__log_every": 1, "distill__save_every_s": 0}
# The time in which a command must report a lost rank.
TIMEOUT_S = 60
RANK_KILLED = ["error: rank 1 was killed (SIGKILL); run the same command again to continue"]


def test_config_error_is_reported_before_ranks_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch, "launch", lambda arguments: pytest.fail("ranks were started"))
    path = write_config(tmp_path, synthesis__num_image=3)
    assert run_command(monkeypatch, synthesize.main, path, "--processes", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown key synthesis.num_image; did you mean num_images?")


def test_ranks_get_the_words_and_the_device_of_the_command(monkeypatch, tmp_path):
    launched = []
    monkeypatch.setattr(launch, "launch", launched.append)
    monkeypatch.setattr(launch, "prepare_launch", lambda num_threads: None)
    monkeypatch.setattr(logging, "disable", lambda: None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "no device")
    with warnings.catch_warnings():
        words = ["verify", "--processes", "2", "seed=3", "--config", str(write_config(tmp_path)), "--device", "cpu"]
        assert run(words) == 0
    (torchrun,) = launched
    assert (torchrun.nproc_per_node, torchrun.training_script_args[-len(words) :]) == ("2", words)
    assert os.environ["DREAMDISTILL_DEVICE"] == "cpu"


@pytest.mark.parametrize(("rank", "num_lines"), [("0", 1), ("1", 0)])
def test_config_error_under_plain_torchrun_is_reported_by_rank_zero(monkeypatch, tmp_path, capsys, rank, num_lines):
    monkeypatch.setenv("RANK", rank)
    assert run_command(monkeypatch, synthesize.main, write_config(tmp_path, synthesis__num_image=3)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: unknown key synthesis.num_image") for line in lines] == [True] * num_lines


def long_synthesis(folder: Path) -> dict[str, Any]:
    """Settings for six batches, each of a second."""
    teacher = sleepy_teacher(folder, pass_s=0.05)
    batches = {"synthesis__inversion__phases": [{"steps": 20}], "synthesis__batch_size": 10}
    return {"teacher": teacher, "teacher_training": None, **batches}


def start_two_ranks(stage: str, path: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = stage_command(stage, path, num_processes=2)
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def error_lines(process: "subprocess.Popen[str]") -> list[str]:
    """What a command that ends with exit code 2 writes to its standard error."""
    try:
        lines = process.communicate(timeout=TIMEOUT_S)[1].splitlines()
        assert process.returncode == 2, lines
        return lines
    finally:
        process.kill()


@pytest.mark.slow
def test_error_of_all_ranks_is_reported_once(tmp_path):
    (line,) = error_lines(start_two_ranks("synthesize", write_config(tmp_path)))
    assert line.startswith("error: there is no teacher yet")


@pytest.mark.slow
def test_error_of_one_rank_is_reported_without_the_end_of_the_others(tmp_path):
    path = write_config(tmp_path)
    with exclusive_lock(load_run(path).checkpoints / ".lock"):  # only rank 0 takes it
        (line,) = error_lines(start_two_ranks("teacher", path))
    assert line.startswith("error: another process works on")


def child_pids(parent_pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):  # it has ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            pids += [int(folder.name)] if parent == parent_pid else []
    return pids


def rank_pid(launcher_pid: int, rank: int) -> int:
    """The process of a rank of a launcher (Linux)."""
    for pid in child_pids(launcher_pid):
        with suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    raise ProcessLookupError(f"no rank {rank}")


def run_and_kill_rank(stage: str, path: Path, is_running: Callable[[], bool]) -> list[str]:
    """Kill rank 1 of a stage once `is_running`; what the command then writes to its standard error."""
    process = start_two_ranks(stage, path)
    while process.poll() is None and not is_running():
        time.sleep(0.01)
    assert process.poll() is None, error_lines(process)
    os.kill(rank_pid(process.pid, 1), signal.SIGKILL)
    return error_lines(process)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")


@needs_proc
@pytest.mark.slow
def test_rank_killed_in_synthesis_is_reported_and_the_shards_do_not_change(tmp_path):
    settings = long_synthesis(tmp_path)
    path, expected = write_config(tmp_path / "killed", **settings), tiny_config(tmp_path / "whole", **settings)
    config = load_run(path)
    assert run_and_kill_rank("synthesize", path, lambda: bool(list_parts(config.round_folder(0)))) == RANK_KILLED
    assert 0 < len(list_parts(config.round_folder(0))) < 6
    run_in_process(synthesize.main, config)
    run_in_process(synthesize.main, expected)
    excluded = [CONFIG_FILE, ".lock"]
    assert digests(config.shards, exclude=excluded) == digests(expected.shards, exclude=excluded)


@needs_proc
@pytest.mark.slow
def test_rank_killed_in_distillation_is_reported_and_the_state_is_kept(finished, tmp_path):
    path = copy_run(finished, tmp_path, **MANY_STEPS)
    config = load_run(path)
    student_path = config.student_path(0)
    student_path.unlink()
    assert run_and_kill_rank("distill", path, state_path(student_path).exists) == RANK_KILLED
    assert not student_path.exists()
    student = build_student(config, load_frozen(config.teacher_model, config.images, torch.device("cpu")))
    state = TrainState.open(student, config.distill, state_path(student_path), student_identity(config, 0))
    assert 0 < state.step < 100_000
