"""Metrics of a running stage: a bar, and for each logging step one JSON line, which also goes to the sinks."""

import json
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.runtime.bars import open_bar
from pipeline.runtime.files import explain_os_errors, make_folder
from pipeline.runtime.form import check_form, check_object
from pipeline.runtime.sinks import Sinks

# A loop calls this on a logging step, with the step and its figures.
OnStep = Callable[[int, dict[str, float]], None]


LINE_FORM = {"stage": str, "step": int, "elapsed_s": float}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a stage has to do: `total` and `done` count `unit`s, such as steps. `round_index` is None without rounds."""

    stage: str
    total: int
    unit: str
    done: int = 0
    round_index: int | None = None

    @property
    def line_keys(self) -> dict[str, Any]:
        """The keys that every line of the stage has."""
        return {"stage": self.stage} | ({} if self.round_index is None else {"round": self.round_index})

    @property
    def title(self) -> str:
        """`distill round 0`, or `teacher`."""
        return self.stage if self.round_index is None else f"{self.stage} round {self.round_index}"


class Recorder:
    """Appends to `metrics.jsonl`, sends the same figures to the sinks, and moves a bar; made by `open_recorder`."""

    def __init__(
        self, file: IO[bytes], advance: Callable[[int], None], progress: Progress, sinks: Sinks | None
    ) -> None:
        self.progress, self.advance = progress, advance
        self._file, self._sinks = file, sinks
        self._logged_at = time.perf_counter()

    def log(
        self,
        step: int,
        figures: dict[str, float],
        *,
        done: int | None = None,
        sink_step: int | None = None,
        **keys: int,
    ) -> None:
        """Write one line (stage, round, `keys`, step, seconds since the line before, figures) and move the bar.

        The bar goes to `done` units, by default `step` + 1. `sink_step` is the step of a stage whose `step` is that of
        a batch.
        """
        now = time.perf_counter()
        elapsed_s = round(now - self._logged_at, 4)
        line = {**self.progress.line_keys, **keys, "step": step, "elapsed_s": elapsed_s, **figures}
        self._logged_at = now
        with explain_os_errors(Path(self._file.name)):
            self._file.write((json.dumps(line) + "\n").encode())
        self.advance(step + 1 if done is None else done)
        if self._sinks is not None:
            stage, round_index = self.progress.stage, self.progress.round_index
            self._sinks.scalars(stage, round_index, step if sink_step is None else sink_step, figures)


@contextmanager
def open_recorder(
    path: Path, progress: Progress, sinks: Sinks | None = None, *, visible: bool = True
) -> Iterator[Recorder]:
    """A recorder that appends to `path`. What is done shows on the standard error if it is `visible`."""
    make_folder(path.parent)
    _end_last_line(path)
    bar = open_bar(progress.title, progress.total, progress.unit, progress.done)
    # Unbuffered, so that a line is either in the file or its failure is reported where it is written.
    with open(path, "ab", buffering=0) as file, bar if visible else nullcontext(_ignore) as advance:
        yield Recorder(file, advance, progress, sinks)


def _ignore(done: int) -> None:
    """Show nothing."""


def _end_last_line(path: Path) -> None:
    """End a line that a killed process left half-written, so that the next one stays readable."""
    with explain_os_errors(path), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def seconds_of_stages(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of work of each stage, summed over the metric lines."""
    seconds: dict[str, float] = defaultdict(float)
    for line in lines:
        seconds[line["stage"]] += line["elapsed_s"]
    return dict(seconds)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines in order; of lines for the same stage, round, batch and step, the last one counts.

    Lines that no stage has written are left out, with a warning.
    """
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    num_foreign = 0
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the half-written last line of a killed process
        if _is_of_a_stage(line):
            latest[tuple(line.get(k) for k in ("stage", "round", "batch", "step"))] = line
        else:
            num_foreign += 1
    if num_foreign:
        warnings.warn(f"{path}: {num_foreign} damaged lines are left out; curves and times lack them", stacklevel=2)
    return list(latest.values())


def _is_of_a_stage(line: Any) -> bool:
    """Whether a line has the stage, the step and the time, and numbers alone beside them."""
    try:
        check_object(line)
        whole = {key: int for key in ("round", "batch") if key in line}
        check_form(line, {**dict.fromkeys(line, float), **whole, **LINE_FORM})
    except ValueError:
        return False
    return True
