"""Threads beside the main one."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from pipeline.runtime.hardware import num_usable_cores


def threads_of_a_worker(local_size: int) -> int:
    """How many threads each of `local_size` workers of this machine has for PyTorch, for reading and for encoding."""
    return max(1, min(torch.get_num_threads(), num_usable_cores()) // local_size)


def background_threads(num_threads: int | None = None) -> ThreadPoolExecutor:
    """Threads to work beside the main one, by default as many as PyTorch has in it.

    PyTorch has one core in each. It would start further threads for each, and once a process has more of its threads
    than the machine has cores, libgomp puts them to sleep after every operation: a step of small ones then takes nearly
    twice as long.
    """
    # A thread takes its number of cores at its first operation, and what another one has set by then is its default.
    in_main = torch.get_num_threads()
    return ThreadPoolExecutor(num_threads or in_main, initializer=torch.set_num_threads, initargs=(1,))


class Overlap:
    """Runs one task at a time beside its caller; made by `overlapped`."""

    def __init__(self, thread: ThreadPoolExecutor | None) -> None:
        self._thread = thread
        self._running: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a task is still running."""
        return self._running is not None and not self._running.done()

    def start(self, task: Callable[[], None]) -> None:
        """Start a task when the one before has ended; raises the error of that one."""
        self.wait()
        if self._thread is None:
            task()
        else:
            self._running = self._thread.submit(task)

    def wait(self) -> None:
        """Wait for the task that is running, and raise its error."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


@contextmanager
def overlapped(enabled: bool = True) -> Iterator[Overlap]:
    """What runs a task while the caller goes on; if not `enabled`, the caller waits.

    An error of a task is raised by the next one, or when the block ends, unless the block has one of its own.
    """
    if not enabled:
        yield Overlap(None)
        return
    with background_threads(1) as thread:
        overlap = Overlap(thread)
        yield overlap
        overlap.wait()
