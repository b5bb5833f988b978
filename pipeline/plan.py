"""The plan of a synthesis: which batch holds which labels and which seed, before anything runs.

It depends on the configuration alone, never on the number of workers or on what is already there.
"""

from dataclasses import dataclass

import torch

from pipeline.codec import ImageFormat
from pipeline.config import ConfigError
from pipeline.invert import InversionConfig
from pipeline.world import derive_seed, make_generator

# Cut evenly, a set in batches of at most 2 can hold a batch of 1; from 3 on every batch has at least 2.
MIN_BATCH = 3


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """What to synthesise: `num_images` in all, spread evenly over `rounds` and over `classes` (all by default).

    `batch_size` is the most images in one batch; batches of a round differ by at most one image.
    """

    num_images: int
    batch_size: int
    inversion: InversionConfig
    rounds: int = 1
    classes: tuple[int, ...] | None = None
    image_format: ImageFormat = "png"
    jpeg_quality: int = 95
    images_per_shard: int = 1000

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "rounds", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.rounds > self.num_images:
            raise ConfigError(f"rounds: {self.rounds} is more than num_images={self.num_images}; lower it")
        if self.batch_size > self.num_images // self.rounds:
            raise ConfigError(
                f"batch_size: {self.batch_size} is larger than the set of one round, {self.num_images // self.rounds} "
                f"images (num_images={self.num_images}, rounds={self.rounds}); lower it or raise num_images"
            )
        if self.batch_size < MIN_BATCH:
            raise ConfigError(f"batch_size: {self.batch_size} has no statistics to match; use at least {MIN_BATCH}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality: {self.jpeg_quality} must be in 1..100")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"classes: {list(self.classes)} names a class twice")
        if self.classes is not None and not self.classes:
            raise ConfigError("classes: an empty list leaves nothing to synthesise; leave the key out for all classes")


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """One unit of synthesis: the images `first_image`, `first_image` + 1, ... of the run, their labels, their seed."""

    index: int
    first_image: int
    labels: tuple[int, ...]
    seed: int


def even_ranges(total: int, parts: int) -> list[range]:
    """`range(total)` cut into `parts` consecutive ranges whose lengths differ by at most one."""
    return [range(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def batch_ranges(total: int, batch_size: int) -> list[range]:
    """`range(total)` in as few batches of at most `batch_size` as possible, all of about the same size."""
    return even_ranges(total, -(-total // batch_size))


def plan_batches(config: SynthesisConfig, num_classes: int, seed: int, round_index: int) -> list[BatchSpec]:
    """Balanced labels of one round, shuffled with the run's seed and cut into batches with one derived seed each.

    Where images are fewer than classes, the classes are drawn, too. Every batch mixes classes, because its statistics
    are matched to those of the whole training set.
    """
    rounds = even_ranges(config.num_images, config.rounds)
    images = rounds[round_index]
    classes = config.classes if config.classes is not None else tuple(range(num_classes))
    if config.num_images < len(classes):
        drawn = torch.randperm(len(classes), generator=make_generator(seed, "classes"))[: config.num_images]
        classes = tuple(classes[i] for i in drawn.tolist())
    balanced = [classes[i % len(classes)] for i in images]
    order = torch.randperm(len(images), generator=make_generator(seed, "labels", round_index)).tolist()
    first_index = sum(len(batch_ranges(len(r), config.batch_size)) for r in rounds[:round_index])
    return [
        BatchSpec(
            index=index,
            first_image=images.start + batch.start,
            labels=tuple(balanced[order[i]] for i in batch),
            seed=derive_seed(seed, "batch", index),
        )
        for index, batch in enumerate(batch_ranges(len(images), config.batch_size), first_index)
    ]
