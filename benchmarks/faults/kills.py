"""SIGKILL at random moments, and before every file operation, of a run of two rounds that is then continued."""

import random
import re
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from itertools import takewhile

from benchmarks.faults.child import Ended
from benchmarks.faults.operations import watch_operations
from benchmarks.faults.trials import FAILED, Outcome, Trial
from benchmarks.faults.work import Work, difference, outputs

SURVIVED = "same bytes"
# Operations on pictures that are drawn if there is time, and all others.
LIVE = r"(preview|evolution-\d+)\.png"
OTHERS = rf"^(?!.*{LIVE})"
# Their folder is changed with them, so a run can still have fewer operations than the first: then it is tried again.
NUM_TRIES = 5


def kill_moments(work: Work, options: Namespace) -> Iterator[Trial]:
    """Each trial is one kill. The next continues the same run; one that ends is compared, and another run begins."""
    draw, duration_s = random.Random(options.seed), _duration_s(work)
    for i in range(options.number):
        yield Trial(f"kill {i}", "random moments", partial(_kill_after, work, draw.uniform(0, duration_s)))
    yield Trial("end", "the run after the last kill", partial(_continue, work, ""))


def _duration_s(work: Work) -> float:
    """Seconds of an uninterrupted run, measured once for a campaign."""
    path = work.folder / "duration_s.txt"
    if not path.exists():
        work.reference()
        work.clear()
        started = time.perf_counter()
        work.must()
        path.write_text(str(time.perf_counter() - started))
        work.clear()
    return float(path.read_text())


def _kill_after(work: Work, moment_s: float) -> Outcome:
    num_ended = 0
    while True:
        child = work.start()
        if child.is_alive_after(moment_s):
            child.kill()
            return Outcome("killed", f"after {moment_s:.2f} s; before that, {num_ended} runs ended with the same bytes")
        ended = _compare(work, child.wait(), f"within {moment_s:.2f} s")
        if ended.word == FAILED:
            return ended
        num_ended += 1
        work.clear()


def kill_operations(work: Work, options: Namespace) -> Iterator[Trial]:
    """Each trial is a run that is killed before one file operation; every `--every`-th operation is tried.

    Of the pictures that a run draws if it has the time, those of the first round are tried, which no run leaves out.
    """
    expected = work.reference()
    work.clear()
    assert work.do(faults=[partial(watch_operations, work.run, work.operations)]).code == 0
    assert outputs(work.run) == expected
    operations = work.operations.read_text().splitlines()
    first_round = takewhile(lambda line: "grid-0" not in line, operations)
    for kind, pattern, lines in (("", OTHERS, operations), ("picture ", LIVE, first_round)):
        names = [line.split()[0] for line in lines if re.search(pattern, line)]
        for i in range(options.seed % options.every, len(names), options.every):
            name = f"{kind}operation {i} of {len(names)}"
            yield Trial(name, names[i], partial(_kill_before, work, i, pattern))


def _kill_before(work: Work, index: int, pattern: str) -> Outcome:
    for _ in range(NUM_TRIES):
        work.clear()
        ended = work.do(faults=[partial(watch_operations, work.run, work.operations, index, pattern)])
        if ended.code == -signal.SIGKILL:
            return _continue(work, work.operations.read_text().splitlines()[-1])
    return Outcome(FAILED, f"the run was not killed: {ended.code} {ended.output[-300:]}")


def _continue(work: Work, detail: str) -> Outcome:
    """Run the same command to its end, and compare the outputs."""
    return _compare(work, work.do(), detail)


def _compare(work: Work, ended: Ended, detail: str) -> Outcome:
    if ended.code != 0:
        return Outcome(FAILED, f"{detail}: {ended.code} {ended.output[-500:]}")
    problem = difference(outputs(work.run), work.reference())
    return Outcome(FAILED, f"{detail}: {problem}") if problem else Outcome(SURVIVED, detail)
