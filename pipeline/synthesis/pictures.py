"""The pictures of a synthesis: the current batch, one batch over its steps, and the packed images by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from pipeline.data.codec import decode_image, to_uint8
from pipeline.data.samples import read_samples
from pipeline.data.shards import read_manifest
from pipeline.runtime.ranges import evenly_spaced
from pipeline.runtime.sinks import Sinks
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.contact_sheet import Row, Text, draw_sheet, num_tiles, tile_size
from pipeline.synthesis.inputs import to_pixels
from pipeline.synthesis.plan import BatchSpec, run_step

PREVIEW = "preview"
# Rounds with pictures of their own, evenly spaced: a run can have a thousand rounds of seconds each.
MAX_ROUNDS = 10
MAX_TILE_PX, SHEET_PX = 256, 1000
PREVIEW_ROWS, PREVIEW_COLUMNS = 4, 8
# The page of a run embeds the evolution, so its tiles are smaller.
EVOLUTION_ROWS, EVOLUTION_COLUMNS, EVOLUTION_TILE_PX = 4, 8, 112
GRID_CLASSES, GRID_COLUMNS = 20, 15


def evolution_name(round_index: int) -> str:
    """The name of the picture of one batch of a round over its steps."""
    return f"evolution-{round_index}"


def grid_name(round_index: int) -> str:
    """The name of the picture of the packed images of a round."""
    return f"grid-{round_index}"


def picture_path(folder: Path, name: str) -> Path:
    """The file of a picture."""
    return folder / f"{name}.png"


def has_pictures(round_index: int, num_rounds: int) -> bool:
    """Whether a round has pictures of its own."""
    return round_index in evenly_spaced(range(num_rounds), MAX_ROUNDS)


@dataclass(frozen=True, kw_only=True)
class RoundTitles:
    """What the pictures of a round are titled with: the run and the round, and each of its classes."""

    round: str
    classes: Sequence[str]


class LivePictures:
    """Draws the batches of this process while they are inverted: the current one, and the first one over its steps.

    The latter is named `evolution`; None: it is not drawn.
    """

    def __init__(
        self,
        sinks: Sinks,
        titles: RoundTitles,
        config: InversionConfig,
        image_size: tuple[int, int],
        evolution: str | None,
    ) -> None:
        self._sinks, self._titles, self._evolution = sinks, titles, evolution
        self._config, self._image_size = config, image_size
        self._strip: _Strip | None = None

    def on_step(self, spec: BatchSpec, step: int, inputs: Tensor) -> None:
        """Take the inputs (N, C, h, w) of a logging step."""
        if strip := self._strip_of(spec):
            strip.add(step, inputs)
        self._sinks.live_images(lambda: self._draw(spec, step, inputs), self._sink_step(spec, step))

    def finish(self, spec: BatchSpec, images: Tensor) -> None:
        """Take the finished images of a batch, uint8 (N, C, H, W)."""
        if strip := self._strip_of(spec):
            strip.finish(images)
            picture = strip.draw(self._titles, self._image_size)
            self._sinks.image(strip.name, picture, self._sink_step(spec, self._config.num_steps))

    def _strip_of(self, spec: BatchSpec) -> "_Strip | None":
        """The evolution, if this is its batch."""
        if self._strip is None and self._evolution is not None:
            self._strip = _Strip(self._evolution, spec, self._config)
        return self._strip if self._strip is not None and self._strip.spec == spec else None

    def _sink_step(self, spec: BatchSpec, step: int) -> int:
        return run_step(spec, self._config.num_steps, step)

    def _draw(self, spec: BatchSpec, step: int, inputs: Tensor) -> dict[str, Image.Image]:
        caption = f"{self._titles.round}, batch {spec.index}, step {step:,} of {self._config.num_steps:,}"
        pictures = {PREVIEW: _draw_preview(inputs, self._image_size, caption)}
        if strip := self._strip_of(spec):
            pictures[strip.name] = strip.draw(self._titles, self._image_size)
        return pictures


def _draw_preview(inputs: Tensor, image_size: tuple[int, int], caption: str) -> Image.Image:
    size = tile_size(image_size, MAX_TILE_PX)
    columns = num_tiles(size[1], SHEET_PX, PREVIEW_COLUMNS)
    images = _host_pixels(inputs[: PREVIEW_ROWS * columns])
    rows = [Row(images=images[i : i + columns]) for i in range(0, len(images), columns)]
    return draw_sheet(rows, size, Text(caption=caption))


def _host_pixels(inputs: Tensor) -> list[Tensor]:
    return list(to_uint8(to_pixels(inputs)).cpu())


class _Strip:
    """Some images of a batch, of different classes, after some of its steps."""

    def __init__(self, name: str, spec: BatchSpec, config: InversionConfig) -> None:
        self.name, self.spec, self._num_steps = name, spec, config.num_steps
        first_of_class = {label: i for i, label in reversed(list(enumerate(spec.labels)))}
        self._indices = sorted(first_of_class.values())[:EVOLUTION_ROWS]
        steps = [*range(0, config.num_steps, config.log_every), config.num_steps]
        self._steps = evenly_spaced(steps, EVOLUTION_COLUMNS)
        self._columns: dict[int, list[Tensor]] = {}

    def add(self, step: int, inputs: Tensor) -> None:
        """Keep the images of the inputs (N, C, h, w) at a step, if it is one of those that are shown."""
        if step in self._steps:
            self._columns[step] = _host_pixels(inputs[self._indices])

    def finish(self, images: Tensor) -> None:
        """Keep the finished images, uint8 (N, C, H, W)."""
        self._columns[self._num_steps] = list(images[self._indices])

    def draw(self, titles: RoundTitles, image_size: tuple[int, int]) -> Image.Image:
        """A row for each image, a column for each step so far."""
        rows = [
            Row(images=[column[r] for column in self._columns.values()], title=titles.classes[self.spec.labels[i]])
            for r, i in enumerate(self._indices)
        ]
        caption = f"{titles.round}, batch {self.spec.index}; columns: steps done"
        text = Text(caption=caption, columns=[f"{step:,}" for step in self._columns])
        return draw_sheet(rows, tile_size(image_size, EVOLUTION_TILE_PX), text)


def draw_grid(folder: Path, round_title: str) -> Image.Image:
    """The first images of some classes of a packed round, with the hits of the verifier, or without one the teacher."""
    manifest = read_manifest(folder)
    shards = {shard["class"]: shard for shard in reversed(manifest["shards"])}
    labels = evenly_spaced(sorted(shards), GRID_CLASSES)
    scorer = "verifier" if "verifier_top1" in manifest["scores"] else "teacher"
    channels, height, width = manifest["shape"]
    size = tile_size((height, width), MAX_TILE_PX)
    rows = []
    for label in labels:
        path, count = folder / shards[label]["file"], num_tiles(size[1], SHEET_PX, GRID_COLUMNS)
        samples = read_samples(path, label, manifest["image_format"], count)
        rows.append(
            Row(
                images=[decode_image(sample.image, channels, sample.key) for sample in samples],
                title=manifest["class_titles"][label],
                hits=[sample.metadata[f"{scorer}_top1"] for sample in samples],
            )
        )
    shown = "" if len(labels) == len(shards) else f", {len(labels)} of {len(shards):,} classes"
    text = Text(
        caption=f"{round_title}: {manifest['num_images']:,} images{shown}",
        hit=f"the {scorer} predicts the class ({manifest['scores'][f'{scorer}_top1']:.1%} of all)",
        miss="it does not",
    )
    return draw_sheet(rows, size, text)
