"""Devices by name, seeds by purpose."""

import subprocess
import sys
import threading

import pytest
import torch
from tiny_run import REPOSITORY

from pipeline.runtime.distributed import DistributedContext, open_distributed
from pipeline.runtime.seeds import derive_seed, make_generator
from pipeline.runtime.threads import overlapped


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(monkeypatch, name):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", name)
    with pytest.raises(ValueError, match=f"DREAMDISTILL_DEVICE={name}"), open_distributed():
        pass


def test_a_single_worker_leads(monkeypatch):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    with open_distributed() as context:
        assert (context.rank, context.size, context.is_main_process, context.device) == (
            0,
            1,
            True,
            torch.device("cpu"),
        )


# In a process of its own, since a number of cores becomes the default of all threads that come later.
BACKGROUND = """
import torch
from pipeline.runtime.threads import background_threads
torch.set_num_threads(3)
with background_threads(2) as threads:
    assert set(threads.map(lambda _: torch.get_num_threads(), range(8))) == {1}
assert torch.get_num_threads() == 3
"""


def test_background_threads_have_one_core_each_and_the_main_thread_keeps_its_own():
    done = subprocess.run([sys.executable, "-c", BACKGROUND], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_a_task_runs_beside_its_caller_where_the_cores_are_free_and_one_at_a_time():
    may_end, events = threading.Event(), []

    def task(name: str) -> None:
        assert may_end.wait(timeout=60)
        events.append(name)

    with overlapped() as beside:
        beside.start(lambda: task("first"))
        assert beside.is_busy
        events.append("caller")
        may_end.set()
        beside.start(lambda: task("second"))
        assert events[:2] == ["caller", "first"]
    assert events == ["caller", "first", "second"]


def test_a_task_runs_in_its_caller_where_the_cores_are_not_free():
    threads = []
    with overlapped(DistributedContext().leaves_cores_free) as beside:
        beside.start(lambda: threads.append(threading.current_thread()))
        assert not beside.is_busy
        assert threads == [threading.current_thread()]


@pytest.mark.parametrize("later", [0, 1])
def test_an_error_of_a_task_beside_its_caller_is_not_lost(later):
    def fail() -> None:
        raise OSError("no space")

    ran = []
    with pytest.raises(OSError, match="no space"), overlapped() as beside:
        beside.start(fail)
        for _ in range(later):
            beside.start(lambda: ran.append(1))
    assert not ran


def test_seeds_differ_by_run_purpose_and_index_and_stay():
    seeds = {derive_seed(seed, purpose, index) for seed in (0, 1) for purpose in ("a", "b") for index in (0, 1)}
    assert len(seeds) == 8
    assert torch.equal(torch.rand(3, generator=make_generator(0, "a")), torch.rand(3, generator=make_generator(0, "a")))
