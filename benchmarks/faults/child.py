"""Commands in child processes that a fault happens to; they are forked from a server that has imported PyTorch."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# What commands import, so that a child starts in no time.
STAGES = ("chain", "verify", "quality", "estimate", "export", "unpack")
PACKAGES = ("torch._dynamo", "sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_svg")
SERVER.set_forkserver_preload([*(f"stages.{name}" for name in STAGES), *PACKAGES])
# A command that takes longer hangs: the run takes seconds.
HANGS_AFTER_S = 300.0
TRACEBACK = "Traceback (most recent call last)"
# What happens to the child before its command starts; it must be importable, as `functools.partial` of functions is.
Fault = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (of a signal negative, of one that hangs None), and all that it printed."""

    code: int | None
    output: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong and how to mend it; `doctor` has one for each problem."""
        return [line for line in self.output.splitlines() if line.startswith(("error: ", "problem "))]

    @property
    def crash(self) -> str | None:
        """Why this is no end that a command may have; None if it is done, or says in one line what is wrong."""
        if self.code is None:
            return f"hangs for {HANGS_AFTER_S:.0f} s"
        if TRACEBACK in self.output:
            return "traceback: " + self.output.strip().rpartition("\n")[2]
        if self.code not in (0, 2):
            return f"exit code {self.code}: {self.output.strip()[-300:]}"
        if self.code == 2 and (not self.errors or self.output.count("\nerror: ") > 1):
            return f"{len(self.errors)} lines of errors: {self.output.strip()[-300:]}"
        return None


class Child:
    """A command of dreamdistill that runs in a process of its own, on the CPU with one thread."""

    def __init__(self, words: Sequence[str], log: Path, faults: Sequence[Fault] = ()) -> None:
        self._log = log
        self.process: BaseProcess = SERVER.Process(target=_run, args=(words, log, faults))
        self.process.start()

    def is_alive_after(self, seconds: float) -> bool:
        """Wait so long, or until the command ends; returns whether it still runs."""
        self.process.join(timeout=seconds)
        return self.process.is_alive()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.join()

    def wait(self) -> Ended:
        """Wait for the end; a command that hangs is killed."""
        hangs = self.is_alive_after(HANGS_AFTER_S)
        self.kill()
        output = self._log.read_text(errors="backslashreplace") if self._log.exists() else ""
        return Ended(None if hangs else self.process.exitcode, output)


def _run(words: Sequence[str], log: Path, faults: Sequence[Fault]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.environ.update({"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"})
    from stages.command_line import run

    for fault in faults:
        fault()
    sys.exit(run(words))


def limit_memory(extra_bytes: int) -> None:
    """Let this process get so many bytes of addresses beyond those that it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra_bytes, resource.RLIM_INFINITY))


def limit(kind: int, value: int) -> None:
    """Set the soft limit of a resource of this process."""
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
