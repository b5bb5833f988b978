"""Coverage-guided random inputs for the parsers of files that can come from anywhere."""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from benchmarks.faults.flips import STATES
from benchmarks.faults.parsers import PARSERS, write_seeds
from benchmarks.faults.trials import FAILED, Outcome, Trial
from benchmarks.faults.work import Work
from benchmarks.harness import REPOSITORY

SECONDS_PER_MINUTE = 60
# Seconds for imports and the last input, beyond the time that is asked for.
MORE_S = 600


def fuzz(work: Work, options: Namespace) -> Iterator[Trial]:
    """One trial for each parser, of `--minutes` each."""
    seeds = work.folder / "seeds"
    if not seeds.exists():
        STATES["distilling"].make(work)
        seeds.mkdir()
        write_seeds(work.run, seeds)
    for name in PARSERS:
        yield Trial(name, name, partial(_fuzz, work, name, options))


def _fuzz(work: Work, name: str, options: Namespace) -> Outcome:
    findings, corpus = work.folder / f"{name}.jsonl", work.folder / "corpus" / name
    findings.unlink(missing_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work.folder / "seeds" / name, corpus, dirs_exist_ok=True)
    seconds = round(options.minutes * SECONDS_PER_MINUTE)
    command = [sys.executable, "-m", "benchmarks.faults.fuzzer", name, findings, corpus, seconds, options.seed]
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + MORE_S,
    )
    output = done.stdout + done.stderr
    lines = [json.loads(line) for line in findings.read_text().splitlines()] if findings.exists() else []
    if lines:
        return Outcome(FAILED, "; ".join(f"{line['error']} at {line['place']}" for line in lines))
    if done.returncode != 0 or not (count := re.search(r"Done (\d+) runs", output)):
        return Outcome(FAILED, output[-500:])
    covered = [int(number) for number in re.findall(r" cov: (\d+) ", output)]
    return Outcome("clean", f"{count[1]} inputs, {max(covered, default=0)} branches")
