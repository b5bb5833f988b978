"""How far a stage is shows as a bar on a terminal, as a line a minute in a file, and on rank 0 alone."""

import os
import pty
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from pipeline.runtime.bars import open_bar
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import Progress, open_recorder


@contextmanager
def terminal(num_columns: int = 80) -> Iterator[list[str]]:
    """A pseudo-terminal as the standard error; a list that holds what is on it after the block."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, num_columns))
    texts: list[str] = []
    with os.fdopen(reader, "rb", buffering=0) as screen, os.fdopen(writer, "w") as stderr:
        with redirect_stderr(stderr):
            yield texts
            print("end", file=stderr, flush=True)
        text = ""
        while not text.endswith("end\r\n"):  # one read returns what was written at once
            text += screen.read(1 << 16).decode()
        texts.append(text.removesuffix("end\r\n"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log_file(tmp_path):
    """A file for the standard error, which is opened without a buffer of its own."""
    with open(tmp_path / "stage.log", "a") as file:
        yield file


def lines_of(file) -> list[str]:
    with open(file.name) as written:
        return written.read().splitlines()


def test_a_terminal_shows_a_bar_that_ends_full():
    with terminal() as texts, open_bar("synthesize round 0", 8, "steps", 2) as advance:
        for done in (4, 8):
            advance(done)
    states = [state for state in texts[0].split("\r") if state.strip()]
    assert "synthesize round 0:  25%" in states[0]
    assert "2/8" in states[0]
    assert "synthesize round 0: 100%" in states[-1]
    assert "8/8" in states[-1]
    assert texts[0].count("\n") == 1


def test_a_terminal_of_unknown_width_gets_lines(clock):
    with terminal(num_columns=0) as texts, open_bar("distill", 8, "steps", 0) as advance:
        clock[0] += 90
        advance(1)
    assert texts[0] == "distill: 1 of 8 steps (12%)\r\n"


def test_a_file_gets_one_line_a_minute(log_file, clock):
    seconds_of_lines: list[int] = []
    with redirect_stderr(log_file), open_bar("distill round 1", 4000, "steps", 1000) as advance:
        for second in range(40, 201, 20):  # the first call comes after 40 s of compiling
            clock[0] = 1000.0 + second
            advance(1000 + 5 * second)
            seconds_of_lines += [second] * (len(lines_of(log_file)) - len(seconds_of_lines))
    assert seconds_of_lines == [60, 120, 180]
    assert lines_of(log_file) == [
        "distill round 1: 1,300 of 4,000 steps (32%), 5 steps/s, 9.0 min left",
        "distill round 1: 1,600 of 4,000 steps (40%), 5 steps/s, 8.0 min left",
        "distill round 1: 1,900 of 4,000 steps (48%), 5 steps/s, 7.0 min left",
    ]


def test_the_first_call_has_no_rate(log_file, clock):
    with redirect_stderr(log_file), open_bar("synthesize", 100, "steps", 0) as advance:
        clock[0] += 90
        advance(1)
    assert lines_of(log_file) == ["synthesize: 1 of 100 steps (1%)"]


def test_a_short_stage_writes_no_line(log_file):
    with redirect_stderr(log_file), open_bar("evaluate", 2, "images", 0) as advance:
        advance(2)
    assert lines_of(log_file) == []


def advance_as(tmp_path, clock, rank: int) -> None:
    progress = Progress(stage="distill", total=2, unit="steps")
    with open_recorder(tmp_path / "metrics.jsonl", progress, DistributedContext(rank=rank)) as recorder:
        clock[0] += 90
        recorder.log(0, {"loss": 1.0})


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_process_shows_something(log_file, clock, tmp_path, rank):
    with terminal() as texts:
        advance_as(tmp_path, clock, rank)
    with redirect_stderr(log_file):
        advance_as(tmp_path, clock, rank)
    assert [bool(texts[0]), bool(lines_of(log_file))] == [rank == 0] * 2
