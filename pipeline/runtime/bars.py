"""How far a stage is: a bar on a terminal, a line a minute elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tqdm import tqdm

from pipeline.runtime.quantities import duration

LINE_EVERY_S = 60.0


@contextmanager
def open_bar(title: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    """A function that takes how many `unit`s of `total` are done, and shows it on the standard error.

    `done` of them were done before. A terminal that does not report its width, as in some build servers, gets lines.
    """
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
        with tqdm(total=total, initial=done, unit=f" {unit}", desc=title, dynamic_ncols=True) as bar:
            yield partial(_move, bar)
    else:
        yield _Lines(title, total, unit).advance


def _move(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)


class _Lines:
    """Writes a line with the rate and the time left at most every `LINE_EVERY_S` seconds.

    The rate is measured from the first call on: before it, a stage compiles.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._written_at = time.monotonic()
        self._first: tuple[int, float] | None = None

    def advance(self, done: int) -> None:
        now = time.monotonic()
        self._first = self._first or (done, now)
        if now - self._written_at < LINE_EVERY_S:
            return
        self._written_at = now
        line = f"{self._title}: {done:,} of {self._total:,} {self._unit} ({done / self._total:.0%})"
        first_done, first_at = self._first
        if done > first_done:
            rate = (done - first_done) / (now - first_at)
            line += f", {rate:,.3g} {self._unit}/s, {duration((self._total - done) / rate)} left"
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
