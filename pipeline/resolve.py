"""The configuration as it runs here: what is decided by the hardware, and by the set of images that exists."""

from dataclasses import replace
from typing import TypeVar

import torch

from pipeline.data.growth import sizes_so_far
from pipeline.data.shards import is_packed, read_manifest
from pipeline.distillation.config import TrainingConfig
from pipeline.run import RunConfig
from pipeline.runtime.acceleration import resolve_acceleration
from pipeline.runtime.config import ConfigError
from pipeline.synthesis.config import resolve_inversion

Training = TypeVar("Training", bound=TrainingConfig)


def resolve(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration as it runs on `device`: without `auto`, and with the former sizes of its set.

    Raises what the two steps raise.
    """
    return with_acceleration(with_growth(config), device)


def with_acceleration(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration without `auto`, see `acceleration.resolve_acceleration`.

    Raises ConfigError when a step is to be compiled, or launched as a CUDA graph, and cannot be.
    """
    image_pixels = config.images.height * config.images.width

    def resolved_training(training: Training, key: str) -> Training:
        return resolve_acceleration(training, device, training.steps * training.batch_size * image_pixels, key)

    synthesis = config.synthesis
    # A set grows with the settings of its first images.
    num_pixels = synthesis.growth[0].num_images * image_pixels
    inversion = resolve_inversion(synthesis.inversion, num_pixels, device)
    return replace(
        config,
        synthesis=replace(synthesis, inversion=inversion),
        distill=resolved_training(config.distill, "distill"),
        teacher_training=config.teacher_training and resolved_training(config.teacher_training, "teacher_training"),
    )


def with_growth(config: RunConfig) -> RunConfig:
    """The configuration with the sizes that the existing set has had.

    Raises ConfigError when the set cannot grow to `num_images`, ShardError when its manifest is damaged.
    """
    synthesis, folder = config.synthesis, config.round_folder(0)
    if synthesis.rounds > 1 or config.distill.shards or not is_packed(folder):
        return config
    identity = read_manifest(folder)["identity"]
    smaller = tuple(size for size in sizes_so_far(identity) if 0 < size < synthesis.num_images)
    # Another batch size is reported as what it is, a difference to the set that exists.
    is_same = identity.get("synthesis", {}).get("batch_size") == synthesis.batch_size
    if not is_same or smaller[: len(synthesis.grown_from)] != synthesis.grown_from:
        return config
    try:
        return replace(config, synthesis=replace(synthesis, grown_from=smaller))
    except ConfigError as error:
        raise ConfigError(f"synthesis.{error}") from None
