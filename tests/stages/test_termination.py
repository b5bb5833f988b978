"""SIGTERM, to one process and to several, and the end of a launcher: what was done is kept, and all processes end."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_launch import MANY_STEPS, long_synthesis, needs_proc, rank_pid
from tiny_run import REPOSITORY, copy_run, stage_command, write_config

from pipeline.data.parts import list_parts
from pipeline.distillation.state import read_state, state_path
from pipeline.run import RunConfig, load_run
from pipeline.runtime.recorder import read_metrics

# The time in which a scheduler expects a command to end; and what a loaded machine adds in a test.
EXIT_WITHIN_S, LOAD_S = 10, 20
# Saved after an interrupt only.
UNSAVED_STEPS = {**MANY_STEPS, "distill__save_every_s": 1e6}

pytestmark = [pytest.mark.slow, needs_proc, pytest.mark.usefixtures("_interruptible")]


def start(stage: str, path: Path, num_processes: int = 1) -> "subprocess.Popen[str]":
    command = stage_command(stage, path, num_processes=num_processes)
    environment = os.environ | {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, stdout=pipe, stderr=pipe)


def signal_when(process: "subprocess.Popen[str]", number: int, is_running: Callable[[], bool]) -> tuple[str, str]:
    """Send a signal once the command `is_running`; its output, in time, from all its processes."""
    try:
        while process.poll() is None and not is_running():
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        return process.communicate(timeout=EXIT_WITHIN_S + LOAD_S)
    finally:
        process.kill()


def prepare_distillation(finished: Path, folder: Path) -> tuple[Path, RunConfig, Callable[[], bool]]:
    """A config file, its run, and what tells that its distillation has begun."""
    path = copy_run(finished, folder, **UNSAVED_STEPS)
    config = load_run(path)
    config.student_path(0).unlink()
    config.metrics_path().unlink()
    return path, config, lambda: len(read_metrics(config.metrics_path())) > 3


@pytest.mark.parametrize("num_processes", [1, 2])
def test_terminated_synthesis_keeps_its_batches(tmp_path, num_processes):
    path = write_config(tmp_path, **long_synthesis(tmp_path))
    folder = load_run(path).round_folder(0)
    process = start("synthesize", path, num_processes)
    _, errors = signal_when(process, signal.SIGTERM, lambda: bool(list_parts(folder)))
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "terminated; run the same command again to continue"
    assert "Traceback" not in errors
    assert 0 < len(list_parts(folder)) < 6


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_interrupted_distillation_by_two_processes_saves_its_step(finished, tmp_path, number, code, name):
    path, config, is_running = prepare_distillation(finished, tmp_path)
    process = start("distill", path, 2)
    output, errors = signal_when(process, number, is_running)
    assert (process.returncode, errors) == (code, f"{name}; run the same command again to continue\n")
    step = read_state(state_path(config.student_path(0)))["step"]
    assert output.splitlines()[-1] == f"distill: step {step:,} is saved"
    assert step == read_metrics(config.metrics_path())[-1]["step"] + 1


def test_processes_of_a_killed_launcher_save_and_end(finished, tmp_path):
    path, config, is_running = prepare_distillation(finished, tmp_path)
    process = start("distill", path, 2)
    output, _ = signal_when(process, signal.SIGKILL, is_running)  # until the processes have closed the output
    assert output.splitlines()[-1].endswith(" is saved")
    assert read_state(state_path(config.student_path(0)))["step"] > 3


def test_terminated_rank_ends_the_command_with_its_code(finished, tmp_path):
    path, config, is_running = prepare_distillation(finished, tmp_path)
    process = start("distill", path, 2)
    while not is_running():
        time.sleep(0.05)
    os.kill(rank_pid(process.pid, 1), signal.SIGTERM)
    _, errors = process.communicate(timeout=EXIT_WITHIN_S + LOAD_S)
    assert (process.returncode, errors) == (143, "terminated; run the same command again to continue\n")
    assert state_path(config.student_path(0)).exists()
