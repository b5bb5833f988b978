"""Threads beside the main one."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from pipeline.runtime.hardware import num_usable_cores


def threads_per_process(local_size: int) -> int:
    """The threads of each of the `local_size` ranks of this machine, for PyTorch, for reading and for encoding."""
    return max(1, min(torch.get_num_threads(), num_usable_cores()) // local_size)


def background_threads(num_threads: int | None = None) -> ThreadPoolExecutor:
    """A pool of threads beside the main one, by default as many as PyTorch uses in the main one.

    PyTorch uses one core in each of them. By default it would start a team of threads for each. As soon as a process
    has more of PyTorch's threads than the machine has cores, libgomp puts them to sleep after every operation, and a
    step of small operations takes nearly twice as long.
    """
    # A thread fixes its number of cores at its first operation; the default is what another thread has set by then.
    num_main_threads = torch.get_num_threads()
    return ThreadPoolExecutor(num_threads or num_main_threads, initializer=torch.set_num_threads, initargs=(1,))


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
        """Start a task after the one before has ended; raises the error of that one."""
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
    """An `Overlap` that runs a task while its caller continues; if not `enabled`, the caller waits for each task.

    The error of a task is raised when the next one starts or when the block ends, unless the block raises one itself.
    """
    if not enabled:
        yield Overlap(None)
        return
    with background_threads(1) as thread:
        overlap = Overlap(thread)
        yield overlap
        overlap.wait()
