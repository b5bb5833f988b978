"""The plan of a round: the labels and the seed of each batch, before anything runs.

It depends on the configuration alone, not on the number of ranks or on the files that exist.
"""

from dataclasses import dataclass

import torch

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


def plan_batches(config: SynthesisConfig, num_classes: int, seed: int, round_index: int) -> list[BatchSpec]:
    """Balanced labels of one round, shuffled with the seed of the run and cut into batches, each with a derived seed.

    If there are fewer images than classes, the classes are drawn, too. Every batch mixes classes, because its
    statistics are matched to those of the whole training set.
    """
    rounds = even_ranges(config.num_images, config.rounds)
    images = rounds[round_index]
    classes = list(range(num_classes))
    if config.num_images < num_classes:
        classes = torch.randperm(num_classes, generator=make_generator(seed, "classes"))[: config.num_images].tolist()
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


def run_step(spec: BatchSpec, num_steps: int, step: int) -> int:
    """A step of a batch, counted over the batches of the run, which all have `num_steps`."""
    return spec.index * num_steps + step
