"""Random flips and truncations in every kind of file that a run has: named, or without any effect."""

import io
import json
import random
import re
import shutil
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from PIL import Image

from benchmarks.faults.operations import watch_operations
from benchmarks.faults.trials import FAILED, Outcome, Trial
from benchmarks.faults.work import Work, difference, outputs
from pipeline.data.parts import read_files, read_members
from pipeline.runtime.digests import unseal

SMALL = ("synthesis.num_images=30",)
ONE_ROUND = ("synthesis.rounds=1", "synthesis.inversion.terms.competition=0", "name=growing")
# The share of damage that cuts a file; the rest flips one bit.
TRUNCATIONS = 0.25
# Which stage besides the whole run reads a file, by a pattern of its name.
OTHER_READERS = {r"quality-\d+\.json": "report", r"estimate\.json": "report"}


@dataclass(frozen=True)
class State:
    """A run in some state: the stages that lead to it, each with overrides, the last killed at an operation."""

    stages: Sequence[tuple[str, Sequence[str]]]
    kill_at: int | None = None
    pattern: str = ""

    @property
    def overrides(self) -> Sequence[str]:
        """Those with which the run continues."""
        *_, (_, overrides) = self.stages
        return overrides

    def make(self, work: Work) -> None:
        """Bring a new run into this state."""
        work.clear()
        *former, (command, overrides) = self.stages
        for stage in former:
            work.must(*stage)
        if self.kill_at is None:
            return work.must(command, overrides)
        kill = partial(watch_operations, work.run, work.operations, self.kill_at, self.pattern)
        ended = work.do(command, overrides, [kill])
        if ended.code is None or ended.code >= 0:
            raise RuntimeError(f"{self} was not killed: {ended.output}")


# Together they have every kind of file.
STATES = {
    "finished": State([(name, ()) for name in ("run", "quality", "estimate", "report", "export")]),
    "training": State([("run", ())], 2, r"rename .*teacher\.state"),
    "synthesizing": State([("run", ())], 1, r"rename .*parts/"),
    "distilling": State([("run", ())], 1, r"rename .*student-1\.state"),
    "growing": State(
        [("teacher", ONE_ROUND), ("synthesize", (*ONE_ROUND, *SMALL)), ("synthesize", ONE_ROUND)],
        1,
        r"rename .*growth/parts/",
    ),
}


def flips(work: Work, options: Namespace) -> Iterator[Trial]:
    """`--number` flips and truncations, over all kinds of files in turn."""
    files = defaultdict(list)
    for name, state in STATES.items():
        folder, expected = work.folder / name, work.folder / f"{name}.json"
        if not expected.exists():
            state.make(work)
            shutil.rmtree(folder, ignore_errors=True)
            work.run.rename(folder)
            work.put(folder)
            work.must("run", state.overrides)
            expected.write_text(json.dumps(outputs(work.run)))
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith((".lock", ".tmp")):
                files[re.sub(r"\d+", "N", str(path.relative_to(folder)))].append((name, path.relative_to(folder)))
    draw, kinds = random.Random(options.seed), sorted(files)
    for i in range(options.number):
        kind = kinds[i % len(kinds)]
        state_name, file = draw.choice(files[kind])
        content = (work.folder / state_name / file).read_bytes()
        damaged, what = damage(content, draw)
        name = f"{i}: {state_name}/{file}, {what}"
        yield Trial(name, kind, partial(_try_damage, work, state_name, file, damaged))


def damage(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """The content with one bit flipped, or cut somewhere; and which of it."""
    at = draw.randrange(len(content))
    if draw.random() < TRUNCATIONS:
        return content[:at], f"cut to {at} bytes"
    bit = draw.randrange(8)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :], f"bit {bit} of byte {at}"


def _try_damage(work: Work, state_name: str, file: Path, damaged: bytes) -> Outcome:
    state, path = STATES[state_name], work.run / file
    work.put(work.folder / state_name)
    whole = path.read_bytes()
    path.write_bytes(damaged)
    verified, is_harmless = work.do("verify", state.overrides), same_values(path.suffix, whole, damaged)
    is_named = verified.code == 2 and str(path) in verified.output
    if verified.crash or not (is_named or (is_harmless and verified.code == 0)):
        return Outcome(FAILED, f"verify does not name it: {verified.crash or verified.output[-300:]}")
    readers = [reader for pattern, reader in OTHER_READERS.items() if re.fullmatch(pattern, path.name)]
    for command in ("run", *readers):
        ended = work.do(command, state.overrides)
        if ended.crash:
            return Outcome(FAILED, f"{command}: {ended.crash}")
        if ended.code == 2:
            if str(path) in ended.output:
                return Outcome("named by verify and stage" if is_named else "harmless, named by the stage")
            return Outcome(FAILED, f"{command} fails without its name: {ended.output[-300:]}")
    expected: dict[str, str] = json.loads((work.folder / f"{state_name}.json").read_text())
    made = outputs(work.run)
    if path.exists() and path.read_bytes() == damaged:  # verify names it, or it is harmless; what counts is the rest
        made.pop(str(file), None)
        expected.pop(str(file), None)
    if problem := difference(made, expected):
        return Outcome(FAILED, f"silent: {problem}")
    return Outcome("named by verify, same outputs" if is_named else "harmless")


def same_values(ending: str, whole: bytes, damaged: bytes) -> bool:
    """Whether what a file with this ending says is the same, although its bytes differ."""
    if ending == ".jsonl":  # a log that ends between two lines can be that of a killed run
        return whole.startswith(damaged) and damaged[-1:] in (b"", b"\n")
    if ending not in VALUES:
        return False
    try:
        return bool(VALUES[ending](whole) == VALUES[ending](damaged))
    except Exception:  # whatever a decoder raises on damaged bytes
        return False


def _pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).tolist()


def _members(content: bytes) -> Mapping[str, Mapping[str, bytes]]:
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(content)
        return {key: read_files(path, positions) for key, positions in read_members(path).items()}


def _tensors(content: bytes) -> Any:
    return {key: (str(t.dtype), t.shape, t.numpy().tobytes()) for key, t in safetensors.torch.load(content).items()}


# What files with an ending say.
VALUES: dict[str, Callable[[bytes], Any]] = {
    ".json": unseal,
    ".png": _pixels,
    ".tar": _members,
    ".safetensors": _tensors,
}
