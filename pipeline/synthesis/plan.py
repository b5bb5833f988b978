"""The plan of a round: the labels and the seed of each batch, before anything runs.

It depends on the configuration alone, not on the number of ranks or on the files that exist.
"""

from dataclasses import dataclass

import torch

from pipeline.data.manifest import image_key
from pipeline.runtime.ranges import batch_ranges, even_ranges
from pipeline.runtime.seeds import derive_seed, make_generator
from pipeline.synthesis.config import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """One batch of synthesis: the images `first_image`, `first_image` + 1, ... of the run, their labels, their seed."""

    index: int
    first_image: int
    labels: tuple[int, ...]
    seed: int

    @property
    def keys(self) -> list[str]:
        """The names of the images in a set, see `manifest.image_key`."""
        return [image_key(label, number) for number, label in enumerate(self.labels, self.first_image)]


def plan_batches(config: SynthesisConfig, num_classes: int, seed: int, round_index: int) -> list[BatchSpec]:
    """Balanced labels of one round, shuffled with the seed of the run and cut into batches, each with a derived seed.

    If there are fewer images than classes, the classes are drawn, too. Every batch mixes classes, because its
    statistics are matched to those of the whole training set. If the set has grown, the plan has only the images beyond
    its size before; their numbers, classes and seeds continue those of that size.
    """
    first_size, *_ = (*config.grown_from, config.num_images)
    start, rounds = config.num_images - config.num_added, even_ranges(config.num_added, config.rounds)
    images = range(start + rounds[round_index].start, start + rounds[round_index].stop)
    classes = list(range(num_classes))
    if first_size < num_classes:
        classes = torch.randperm(num_classes, generator=make_generator(seed, "classes")).tolist()
    balanced = [classes[i % num_classes] for i in images]
    purpose = f"labels from {start}" if start else "labels"
    order = torch.randperm(len(images), generator=make_generator(seed, purpose, round_index)).tolist()
    sets_before = [*(step.num_added for step in config.growth[:-1]), *map(len, rounds[:round_index])]
    first_index = sum(len(batch_ranges(size, config.batch_size)) for size in sets_before)
    return [
        BatchSpec(
            index=index,
            first_image=images.start + batch.start,
            labels=tuple(balanced[order[i]] for i in batch),
            seed=derive_seed(seed, "batch", index),
        )
        for index, batch in enumerate(batch_ranges(len(images), config.batch_size), first_index)
    ]


def run_step(spec: BatchSpec, num_steps: int, step: int) -> int:
    """A step of a batch, counted over the batches of the run, which all have `num_steps`."""
    return spec.index * num_steps + step
