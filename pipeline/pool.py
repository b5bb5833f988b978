"""`Pool`: the synthetic images that the student of a round learns from, checked, decoded and cached."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import torch

from pipeline.data.damage import check_sizes, find_damage
from pipeline.data.given_sets import RunClasses, given_fix, labels_in_run
from pipeline.data.image_sets import ArrayImages, ImageSet
from pipeline.data.loader import cache_limit_bytes, num_bytes, preload
from pipeline.data.parts import REMAKE, ShardError
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.distributed import DistributedContext
from pipeline.sets import require_complete_set


class Pool:
    """The images of all rounds so far, or of the sets that `distill.shards` names; each set is read once."""

    def __init__(self, config: RunConfig, context: DistributedContext) -> None:
        self._config, self._device = config, context.device
        self._shards, self._num_pooled, self._num_checked = ShardSet([]), 0, 0
        self._cached: ArrayImages | None = None
        # Measured now, since the process keeps the memory that synthesis frees.
        self._limit_bytes = cache_limit_bytes(config.distill.memory_gib, context.device, context.local_size)

    def require_complete(self, last_round: int) -> None:
        """Raise ConfigError when a round up to `last_round` has another identity, ShardError when it is not complete.

        Sets of `distill.shards` must fit the run. Shards are checked by their size; `images` checks their content.
        """
        if self._config.distill.shards:
            self._require_batch(sum(read_manifest(folder)["num_images"] for folder in self._given_labels))
            return
        for r in range(self._num_checked, last_round + 1):
            folder = self._config.round_folder(r)
            manifest = read_manifest(folder)
            require_complete_set(self._config, r, manifest["identity"])
            check_sizes(folder, manifest)
            self._num_checked = r + 1

    def images(self, last_round: int) -> ImageSet:
        """The images of all rounds up to `last_round`, preloaded if they fit; raises ShardError for a damaged shard."""
        folders = self._config.image_folders(last_round)
        if len(folders) < self._num_pooled:
            self._shards, self._num_pooled, self._cached = ShardSet([]), 0, None
        new = folders[self._num_pooled :]
        for folder in new:
            fix = given_fix(folder) if self._config.distill.shards else REMAKE
            if problems := find_damage(folder, fix):
                raise ShardError("; ".join(problems))
        for folder in new:
            self._shards.add(folder, self._given_labels.get(folder))
        self._num_pooled = len(folders)
        if num_bytes(self._shards) > self._limit_bytes:
            self._cached = None
            return self._shards
        new_shards = self._shards if self._cached is None else ShardSet(new)
        if len(new_shards):
            images = preload(new_shards, self._device)
            self._cached = images if self._cached is None else _concatenated(self._cached, images)
        assert self._cached is not None and len(self._cached.labels) == len(self._shards)
        return self._cached

    def shards(self, folders: Iterable[Path]) -> ShardSet:
        """The images of some of the folders, with the labels of the run; they are neither checked nor decoded."""
        images = ShardSet([])
        for folder in folders:
            images.add(folder, self._given_labels.get(folder))
        return images

    @cached_property
    def _given_labels(self) -> Mapping[Path, list[int]]:
        """For each folder of `distill.shards`, the label in the run of each of its labels."""
        config = self._config
        if not config.distill.shards:
            return {}
        folders = {name: config.given_folder(name) for name in config.distill.shards}
        in_run = labels_in_run(folders, run_classes(config))
        return dict(zip(config.image_folders(0), in_run, strict=True))

    def _require_batch(self, num_images: int) -> None:
        if self._config.distill.batch_size > num_images:
            raise ConfigError(
                f"distill.batch_size: {self._config.distill.batch_size} is larger than the {num_images} images of "
                "distill.shards; lower it or name more sets"
            )


def run_classes(config: RunConfig) -> RunClasses:
    """The classes that sets of `distill.shards` must have."""
    labels = config.class_labels
    return RunClasses(
        images=config.images,
        labels=range(config.images.num_classes) if labels is None else labels,
        titles=config.class_titles,
    )


def _concatenated(first: ArrayImages, second: ArrayImages) -> ArrayImages:
    return ArrayImages(torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels]))
