"""What a machine can lack: space and inodes on a disk, permission to write, open files, memory, a clock, a home."""

import os
import resource
import subprocess
import sys
import sysconfig
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.child import HANGS_AFTER_S, Ended, Fault, limit, limit_memory
from benchmarks.faults.operations import watch_operations
from benchmarks.faults.trials import FAILED, SKIPPED, Outcome, Trial
from benchmarks.faults.work import Work, difference, outputs
from benchmarks.harness import REPOSITORY

# Space for the whole run, and the inodes and bytes of memory at which it is tried.
LARGE_BYTES, INODES = 1 << 28, (4, 16, 40)
EXTRA_BYTES = tuple(mebibytes << 20 for mebibytes in (4, 32, 128))
OPEN_FILES, FILE_BYTES = 64, 1 << 13
DAY_S = 86400
# A user that no file of the system knows, as containers have.
NOBODY = 54321
# This interpreter, and that of the system with the same version: this one can lie in a home.
PYTHONS = (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
# Lets git tell the commit, which outputs state, to a user who does not own the tree.
ANY_OWNER = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
REPAIRED = "one line, then the same bytes"
NO_EFFECT = "same bytes"


def disks(work: Work, options: Namespace) -> Iterator[Trial]:
    """`--number` sizes of a disk, and one or a few trials of each other lack."""
    work.reference()
    work.clear()
    with _disk(work.run, f"size={LARGE_BYTES}") as problem:
        if problem is None:
            work.must()
        used_bytes = sum(path.stat().st_blocks * 512 for path in work.run.rglob("*"))
    for i in range(options.number):
        size = round(used_bytes * (i + 0.5) / options.number)
        yield Trial(f"disk of {size} bytes", "full disk", partial(_on_disk, work, f"size={size}"))
    for count in INODES:
        yield Trial(f"{count} inodes", "no inodes", partial(_on_disk, work, f"size={LARGE_BYTES},nr_inodes={count}"))
    yield Trial("read-only, unfinished", "read-only", partial(_unfinished_read_only, work))
    yield Trial("read-only, finished", "read-only", partial(_finished_read_only, work))
    limits = {
        "open files": (resource.RLIMIT_NOFILE, OPEN_FILES),
        "bytes of a file": (resource.RLIMIT_FSIZE, FILE_BYTES),
    }
    for name, (kind, value) in limits.items():
        yield Trial(f"{value} {name}", name, partial(_with_fault, work, partial(limit, kind, value)))
    for extra in EXTRA_BYTES:
        yield Trial(f"{extra} bytes of memory", "low memory", partial(_with_fault, work, partial(limit_memory, extra)))
    yield Trial("a day back, after a kill", "clock backwards", partial(_clock_backwards, work))
    for user in (None, NOBODY):
        yield Trial(f"no HOME, user {user or 'root'}", "no HOME", partial(_without_home, work, user))


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[str | None]:
    """A disk in memory at `folder`; gives why there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    try:
        yield mounted.stderr.strip() if mounted.returncode else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def _on_disk(work: Work, options: str) -> Outcome:
    """A run on a disk of that kind, which is enlarged after it."""
    work.clear()
    with _disk(work.run, options) as problem:
        if problem:
            return Outcome(SKIPPED, problem)
        ended = work.do()
        _remount(work.run, f"size={LARGE_BYTES},nr_inodes=0")
        return _then_without(work, ended)


def _unfinished_read_only(work: Work) -> Outcome:
    work.clear()
    with _disk(work.run, f"size={LARGE_BYTES}") as problem:
        if problem:
            return Outcome(SKIPPED, problem)
        work.do(faults=[partial(watch_operations, work.run, work.operations, 0, "parts/000001")])
        _remount(work.run, "ro")
        ended = work.do()
        _remount(work.run, "rw")
        return Outcome(FAILED, "it ran") if ended.code == 0 else _then_without(work, ended)


def _finished_read_only(work: Work) -> Outcome:
    """What only reads must do so on a disk that cannot be written."""
    work.clear()
    with _disk(work.run, f"size={LARGE_BYTES}") as problem:
        if problem:
            return Outcome(SKIPPED, problem)
        work.must()
        _remount(work.run, "ro")
        for command in ("run", "verify", "evaluate", "report"):
            ended = work.do(command)
            if ended.code != 0:
                return Outcome(FAILED, f"{command}: {ended.output[-300:]}")
        return _then_without(work, ended)


def _with_fault(work: Work, fault: Fault) -> Outcome:
    work.clear()
    return _then_without(work, work.do(faults=[fault]))


def _clock_backwards(work: Work) -> Outcome:
    """A killed run continues a day before the time of its own files."""
    work.clear()
    work.do(faults=[partial(watch_operations, work.run, work.operations, 0, r"rename .*student-0\.state")])
    return _then_without(work, work.do(faults=[_set_clock_back]))


def _set_clock_back() -> None:
    """Let Python's clocks in this process be a day behind that of the file system."""
    seconds, nanoseconds = time.time, time.time_ns
    time.time, time.time_ns = lambda: seconds() - DAY_S, lambda: nanoseconds() - DAY_S * 10**9


def _without_home(work: Work, user: int | None) -> Outcome:
    """A run without variables of the environment that tell a home, in an interpreter of its own."""
    work.clear()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": sysconfig.get_path("purelib")}
    environment |= {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **ANY_OWNER}
    run = partial(
        subprocess.run,
        cwd=REPOSITORY, env=environment, user=user, group=user, extra_groups=None if user is None else [],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANGS_AFTER_S,
    )  # fmt: skip
    problems = {python: _why_unusable(python, run) for python in PYTHONS}
    if usable := [python for python, problem in problems.items() if problem is None]:
        words = [usable[0], "-m", "stages", *work.words("run")]
        expected = None if usable[0] == sys.executable else _made_by(words, work, environment)
        work.run.mkdir()
        if user is not None:
            os.chown(work.run, user, user)
        done = run(words)
        return _then_without(work, Ended(done.returncode, done.stdout), expected)
    return Outcome(SKIPPED, "; ".join(f"{python}: {problem}" for python, problem in problems.items()))


def _why_unusable(python: str, run: Callable[..., "subprocess.CompletedProcess[str]"]) -> str | None:
    """Why an interpreter cannot import what a run needs; None if it can."""
    try:
        tried = run([python, "-c", "import torch, stages"])
    except OSError as error:  # it can lie in the home of another user
        return str(error)
    return tried.stdout.strip().rpartition("\n")[2] if tried.returncode else None


def _made_by(words: Sequence[str], work: Work, environment: Mapping[str, str]) -> dict[str, str]:
    """What another interpreter makes without a fault: manifests state the version of Python."""
    subprocess.run(words, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, check=True)
    expected = outputs(work.run)
    work.clear()
    return expected


def _then_without(work: Work, ended: Ended, expected: dict[str, str] | None = None) -> Outcome:
    """What came of a command with a fault, and of the same command when the fault is gone."""
    if ended.crash:
        return Outcome(FAILED, ended.crash)
    resumed = work.do()
    if resumed.code != 0:
        return Outcome(FAILED, f"does not resume: {resumed.output[-300:]}")
    if problem := difference(outputs(work.run), expected or work.reference()):
        return Outcome(FAILED, problem)
    return Outcome(REPAIRED if ended.code else NO_EFFECT, (ended.errors or [""])[0])
