"""Metrics of a running stage: a bar, and for each logging step one JSON line, which also goes to the sinks."""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.runtime.bars import open_bar
from pipeline.runtime.digests import seal_line, unseal_line
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.files import explain_os_errors, make_folder
from pipeline.runtime.form import check_form
from pipeline.runtime.hardware import resources_of_process
from pipeline.runtime.sinks import Sinks

# More than any line of metrics has.
MAX_LINE_BYTES = 1 << 16
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
        self,
        file: IO[bytes],
        advance: Callable[[int], None],
        progress: Progress,
        device: torch.device,
        sinks: Sinks | None,
    ) -> None:
        self.progress, self.advance = progress, advance
        self._file, self._device, self._sinks = file, device, sinks
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
        """Write one line and move the bar.

        The line has stage, round, `keys`, step, seconds since the line before, resources of the process, figures. The
        bar goes to `done` units, by default `step` + 1. `sink_step` is the step of a stage whose `step` is that of a
        batch.
        """
        now = time.perf_counter()
        elapsed_s = round(now - self._logged_at, 4)
        used = {"elapsed_s": elapsed_s, **resources_of_process(self._device)}
        line = {**self.progress.line_keys, **keys, "step": step, **used, **figures}
        self._logged_at = now
        with explain_os_errors(Path(self._file.name)):
            self._file.write(seal_line(line))
        self.advance(step + 1 if done is None else done)
        if self._sinks is not None:
            stage, round_index = self.progress.stage, self.progress.round_index
            self._sinks.scalars(stage, round_index, step if sink_step is None else sink_step, figures)


@contextmanager
def open_recorder(
    path: Path, progress: Progress, context: DistributedContext, sinks: Sinks | None = None
) -> Iterator[Recorder]:
    """A recorder that appends to `path`; rank 0 shows what is done on the standard error."""
    make_folder(path.parent)
    _drop_half_line(path)
    bar = open_bar(progress.title, progress.total, progress.unit, progress.done)
    # Unbuffered, so that a line is either in the file or its failure is reported where it is written.
    with open(path, "ab", buffering=0) as file, bar if context.is_main_process else nullcontext(_ignore) as advance:
        yield Recorder(file, advance, progress, context.device, sinks)


def _ignore(done: int) -> None:
    """Show nothing."""


def _drop_half_line(path: Path) -> None:
    """Remove the last line if a full disk or a lost machine left it half-written."""
    with explain_os_errors(path), open(path, "a+b") as file:
        size = file.tell()
        file.seek(max(0, size - MAX_LINE_BYTES))
        tail = file.read(min(size, MAX_LINE_BYTES))
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage took, by the metric lines of one process.

    `core_s` and `gpu_s` are seconds times cores and times GPUs; `peak_memory_bytes` is that of the process until the
    stage ended. They are 0 for lines of versions that did not write them.
    """

    seconds: float = 0.0
    core_s: float = 0.0
    gpu_s: float = 0.0
    peak_memory_bytes: int = 0


def costs_of_stages(lines: Iterable[Mapping[str, Any]]) -> dict[str, StageCost]:
    """The cost of each stage."""
    costs: dict[str, StageCost] = defaultdict(StageCost)
    for line in lines:
        stage, elapsed_s = line["stage"], line["elapsed_s"]
        cost = costs[stage]
        costs[stage] = StageCost(
            seconds=cost.seconds + elapsed_s,
            core_s=cost.core_s + elapsed_s * line.get("cores", 0),
            gpu_s=cost.gpu_s + elapsed_s * line.get("gpus", 0),
            peak_memory_bytes=max(cost.peak_memory_bytes, line.get("peak_memory_bytes", 0)),
        )
    return dict(costs)


def seconds_of_stages(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of work of each stage."""
    return {stage: cost.seconds for stage, cost in costs_of_stages(lines).items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines in order; of lines for the same stage, round, batch and step, the last one counts.

    Damaged ones are left out with a warning.
    """
    lines = read_lines(path)
    if damaged := lines.count(None):
        warnings.warn(f"{path}: {damaged} of {len(lines)} lines are damaged; they are left out", stacklevel=2)
    latest = {tuple(map(line.get, ("stage", "round", "batch", "step"))): line for line in lines if line is not None}
    return list(latest.values())


def read_lines(path: Path) -> list[dict[str, Any] | None]:
    """Each line of a file of metrics; none if there is no such file.

    A damaged line is None, as one that no stage has written: it has not the stage, the step and the time, or others
    than numbers beside them.
    """
    lines: list[dict[str, Any] | None] = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = unseal_line(text)
            whole = {key: int for key in ("round", "batch") if key in line}
            check_form(line, {**dict.fromkeys(line, float), **whole, **LINE_FORM})
            lines.append(line)
        except ValueError:
            lines.append(None)
    return lines
