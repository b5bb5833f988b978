"""Threads beside the main one: their cores, and a task that runs beside its caller."""

import subprocess
import sys
import threading

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline.runtime import threads
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.threads import overlapped, threads_per_process

# In a process of its own: threads that start later take the number that the last thread has set.
BACKGROUND = """
import torch
from pipeline.runtime.threads import background_threads
torch.set_num_threads(3)
with background_threads(2) as threads:
    assert set(threads.map(lambda _: torch.get_num_threads(), range(8))) == {1}
assert torch.get_num_threads() == 3
"""


def test_background_threads_use_one_core_each():
    process = subprocess.run([sys.executable, "-c", BACKGROUND], capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(("num_processes", "expected"), [(1, 6), (2, 3), (4, 1), (16, 1)])
def test_ranks_of_a_machine_share_its_cores(monkeypatch, num_processes, expected):
    monkeypatch.setattr(threads, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert threads_per_process(num_processes) == expected


def test_overlapped_tasks_run_one_at_a_time_beside_the_caller():
    may_end, events = threading.Event(), []

    def task(name: str) -> None:
        assert may_end.wait(timeout=60)
        events.append(name)

    with overlapped() as overlap:
        overlap.start(lambda: task("first"))
        assert overlap.is_busy
        events.append("caller")
        may_end.set()
        overlap.start(lambda: task("second"))
        assert events[:2] == ["caller", "first"]
    assert events == ["caller", "first", "second"]


def test_task_runs_in_the_caller_on_the_cpu():
    running_threads = []
    with overlapped(DistributedContext().leaves_cores_free) as overlap:
        overlap.start(lambda: running_threads.append(threading.current_thread()))
        assert not overlap.is_busy
        assert running_threads == [threading.current_thread()]


@pytest.mark.parametrize("num_later_tasks", [0, 1])
def test_error_of_a_task_is_raised(num_later_tasks):
    def fail() -> None:
        raise OSError("no space")

    calls = []
    with pytest.raises(OSError, match="no space"), overlapped() as overlap:
        overlap.start(fail)
        for _ in range(num_later_tasks):
            overlap.start(lambda: calls.append(1))
    assert not calls
