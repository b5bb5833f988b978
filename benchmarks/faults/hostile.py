"""Hostile files and settings: none may run code, write outside the run, take more than 2 GB, or end in a traceback."""

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from benchmarks.faults.child import Fault, limit_memory
from benchmarks.faults.flips import STATES
from benchmarks.faults.hostile_files import CANARY, MARKUP, Put
from benchmarks.faults.hostile_tables import TABLES
from benchmarks.faults.operations import watch_for_harm
from benchmarks.faults.trials import FAILED, Outcome, Trial
from benchmarks.faults.work import Work

# Bytes of addresses beyond those of the interpreter with its packages.
MAX_BYTES = 2 << 30
# What the run itself starts or writes outside of its folder: git tells the version, packages load libraries, PyTorch
# has a cache, and two configs name such a folder.
OWN = ("'git'", "ctypes.dlopen", "/torchinductor_", " /proc", " //proc", "/dev/null/")


def hostile(work: Work, options: Namespace) -> Iterator[Trial]:
    """One trial for each stage that meets each hostile content of the tables in `hostile_tables`."""
    finished = work.folder / "finished"
    if not finished.exists():
        STATES["finished"].make(work)
        work.run.rename(finished)
    for kind, (commands, table) in TABLES.items():
        for name, put in table.items():
            for command in commands:
                yield Trial(f"{kind}: {name}: {command}", kind, partial(_meet, work, put, command))


def _meet(work: Work, put: Put, command: str) -> Outcome:
    """A stage of a finished run with hostile content."""
    work.put(work.folder / "finished")
    canary, harm = work.folder / CANARY, work.folder / "harm.txt"
    canary.write_text(CANARY)
    overrides = put(work.run)
    faults: list[Fault] = [partial(limit_memory, MAX_BYTES), partial(watch_for_harm, work.run, harm)]
    ended = work.do(command, overrides, faults)
    if done := [line for line in harm.read_text().splitlines() if not any(mark in line for mark in OWN)]:
        return Outcome(FAILED, done[0])
    if ended.crash:
        return Outcome(FAILED, ended.crash)
    if canary.read_text() != CANARY:
        return Outcome(FAILED, "code was run, or a file outside was written")
    if any(MARKUP in page.read_text() for page in work.run.rglob("*.html")):
        return Outcome(FAILED, "markup reaches the report")
    if "the memory is full" in ended.output:  # the limit was met, and nothing told why
        return Outcome(FAILED, f"over 2 GB: {ended.errors}")
    return Outcome("refused", ended.errors[0][:200]) if ended.errors else Outcome("no effect")
