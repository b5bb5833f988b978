"""`make doctor`: a line for each finding, colors on a terminal alone, and the exit code."""

import os
import subprocess
import sys
import warnings

import pytest
from tiny_run import REPOSITORY, finish, stage_command, start, with_weights, write_config

from pipeline.doctor import cost
from pipeline.doctor.findings import problem
from stages.command_line import run


@pytest.fixture
def run_doctor(monkeypatch, capsys):
    """Run the command in this process; returns its exit code and the printed lines."""
    monkeypatch.setattr(cost, "TIMED_PIXELS", 2**10)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")

    def run_command(*arguments: object) -> tuple[int, list[str]]:
        try:
            code = run(["doctor", *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return run_command


def test_right_run_exits_with_0(run_doctor, tmp_path):
    path = write_config(tmp_path)
    code, lines = run_doctor("--config", path)
    assert code == 0
    assert lines[0] == f"doctor: tiny ({path})"
    assert all(line.startswith("ok       ") for line in lines[1:-1])
    assert lines[-1] == f"doctor: {len(lines) - 2} ok, 0 warning, 0 problem"


def test_problems_are_counted_and_exit_with_2(run_doctor, tmp_path):
    path = write_config(tmp_path, data__test="npz:none.npz", **with_weights("none.safetensors"))
    code, lines = run_doctor("--config", path, "seed=1")
    assert code == 2
    assert [line.split()[1] for line in lines if line.startswith("problem")] == ["teacher", "test"]
    assert lines[-1].endswith("2 problem")


def test_config_that_cannot_be_read_is_an_error(run_doctor, tmp_path):
    code, lines = run_doctor("--config", write_config(tmp_path), "distill.lr=fast")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: distill.lr: expected a finite number, got 'fast'")


def test_device_that_does_not_exist_is_a_problem_and_the_rest_is_checked(run_doctor, tmp_path, monkeypatch):
    path = write_config(tmp_path)
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "tpu")
    code, lines = run_doctor("--config", path)
    assert code == 2
    assert lines[0].startswith("problem  device ")
    assert lines[0].endswith("the other checks use the CPU")
    assert any(line.startswith("ok       estimate ") for line in lines)


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "is_colored"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colors_are_for_terminals_without_no_color(
    run_doctor, tmp_path, monkeypatch, is_terminal, no_color, is_colored
):
    monkeypatch.setattr("stages.doctor.examine", lambda config, context: [problem("disk", "is full")])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    _, lines = run_doctor("--config", write_config(tmp_path))
    plain = "problem  disk           is full"
    assert lines[1] == (plain.replace("problem  ", "\033[31mproblem  \033[0m") if is_colored else plain)


@pytest.mark.slow
def test_two_processes_without_a_device_are_reported_as_one(tmp_path):
    command = stage_command("doctor", write_config(tmp_path), num_processes=2, arguments=["--device", "tpu"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stdout.startswith("problem  device         the device 'tpu' is none to compute on")
    assert "ok       estimate " in ended.stdout
    assert ended.stdout.splitlines()[-1].endswith("1 problem")


@pytest.mark.slow
def test_two_processes_end_with_the_code_of_the_first(tmp_path):
    bad = write_config(tmp_path, **with_weights("none.safetensors"))
    assert finish(start(stage_command("doctor", bad, num_processes=2))) == 2
