"""Sinks: where metrics and pictures go beside the files of a run: TensorBoard, or a class of the user's own."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import atomic_file
from pipeline.runtime.python_source import load_python

METHODS = ("scalars", "image", "figures", "close")
# Share of the time that pictures of running work may take, and seconds between those that go to sinks, which keep all.
LIVE_SHARE, LIVE_SENT_EVERY_S = 0.005, 300.0
# zlib's fastest level: on the noise that inversion starts from, others take several times as long for the same size.
PNG_LEVEL = 1


class Sink(Protocol):
    """What takes the metrics and pictures of a run; made as `Sink(name, folder, config)`, when there is the first one.

    `name` is the run's, `folder` that of its checkpoints, `config` its configuration as plain data. Only rank 0 has
    sinks. A restarted run makes new ones, whose steps continue those of the former, from the last saved state.
    """

    def scalars(self, stage: str, round_index: int | None, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a logging step; a stage counts its steps over all its batches and rounds."""
        ...

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Take a picture (H, W, 3); `step` is that of synthesis."""
        ...

    def figures(self, values: Mapping[str, float]) -> None:
        """Take the figures of an evaluation."""
        ...

    def close(self) -> None:
        """Finish; called once, also after an error."""
        ...


class Sinks:
    """The sinks of a run as one, and the files of its pictures; made by `open_sinks`."""

    def __init__(self, folder: Path, factories: Sequence[Callable[[], Sink]], resources: ExitStack) -> None:
        self._folder, self._factories, self._resources = folder, factories, resources
        self._next_live_at = self._next_sent_at = 0.0

    @cached_property
    def _sinks(self) -> list[Sink]:
        return [self._resources.enter_context(closing(factory())) for factory in self._factories]

    def scalars(self, stage: str, round_index: int | None, step: int, values: Mapping[str, float]) -> None:
        """Send the figures of a logging step."""
        for sink in self._sinks:
            sink.scalars(stage, round_index, step, values)

    def image(self, name: str, picture: Image.Image, step: int) -> None:
        """Write the file `NAME.png`, and send the picture; warns if the file cannot be written."""
        self._write(name, picture)
        self._send(name, picture, step)

    def _write(self, name: str, picture: Image.Image) -> None:
        try:
            with atomic_file(self._folder / f"{name}.png") as file:
                picture.save(file, "PNG", compress_level=PNG_LEVEL)
        except OSError as error:
            warnings.warn(f"{error.strerror or error}; the run continues without this picture", stacklevel=3)

    def _send(self, name: str, picture: Image.Image, step: int) -> None:
        for sink in self._sinks:
            sink.image(name, np.asarray(picture.convert("RGB")), step)

    def live_images(self, draw: Callable[[], Mapping[str, Image.Image]], step: int) -> None:
        """Write each picture by name that `draw` returns, unless they would take over `LIVE_SHARE` of the time.

        One in `LIVE_SENT_EVERY_S` seconds is also sent.
        """
        started = time.perf_counter()
        if started < self._next_live_at:
            return
        for name, picture in draw().items():
            self._write(name, picture)
            if started >= self._next_sent_at:
                self._send(name, picture, step)
        if started >= self._next_sent_at:
            self._next_sent_at = started + LIVE_SENT_EVERY_S
        ended = time.perf_counter()
        self._next_live_at = ended + (ended - started) / LIVE_SHARE

    def figures(self, values: Mapping[str, float]) -> None:
        """Send the figures of an evaluation."""
        for sink in self._sinks:
            sink.figures(values)


def check_sink_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is neither `tensorboard` nor of Python."""
    for name in names:
        if name != "tensorboard" and not name.startswith("python:"):
            raise ConfigError(
                f"sinks: {name!r} must be tensorboard, or python:package.module:Class or python:path/to/file.py:Class "
                "for a sink of your own (docs/live.md)"
            )


@contextmanager
def open_sinks(names: Sequence[str], run_name: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Sinks]:
    """The sinks of a run, which are closed when the block ends.

    Raises ValueError at once for one that is not installed or has not all methods; each is made when it is needed.
    """
    factories = [partial(_sink_class(name), run_name, folder, config) for name in names]
    with ExitStack() as resources:
        yield Sinks(folder, factories, resources)


def _sink_class(name: str) -> Callable[..., Sink]:
    if name == "tensorboard":
        from pipeline.runtime.tensorboard import TensorBoard, require_tensorboard

        require_tensorboard()
        return TensorBoard
    sink_class = load_python(name.removeprefix("python:"))
    if missing := [method for method in METHODS if not callable(getattr(sink_class, method, None))]:
        raise ValueError(f"sinks: {name} has no method {missing[0]!r}; docs/live.md shows a sink")
    return sink_class
