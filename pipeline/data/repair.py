"""Repair of a complete set: damaged shards are written again, from their whole images and from batches made anew.

Such batches are made in `repair/`, which is removed when the shards are whole. After a kill, a second repair continues:
each image tells by its digest and its fingerprint whether it is whole and belongs to the set.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.codec import EXTENSIONS
from pipeline.data.damage import damaged_shards
from pipeline.data.parts import REMAKE, ShardError, find_whole, part_path, read_files, read_members, require_whole
from pipeline.data.shards import (
    TarSample,
    fingerprints_of,
    mean_scores,
    read_manifest,
    shard_entry,
    write_manifest,
    write_shard,
)

REPAIR = "repair"


@dataclass(frozen=True)
class Repair:
    """What is to be repaired of the set in `folder`: `faults` of its shards, by their file, and the `lost` images."""

    folder: Path
    faults: Mapping[str, str]
    lost: frozenset[str]

    @property
    def workshop(self) -> Path:
        """The folder in which lost images are made anew."""
        return self.folder / REPAIR


def plan_repair(folder: Path) -> Repair:
    """What is damaged in a complete set; reads all of its shards."""
    manifest = read_manifest(folder)
    faults = damaged_shards(folder, manifest)
    damaged = [entry for entry in manifest["shards"] if entry["file"] in faults]
    lost = {key for entry in damaged for key in entry["keys"]}
    lost -= {key for entry in damaged for key in whole_samples(folder / entry["file"], manifest)}
    return Repair(folder, faults, frozenset(lost))


def write_repaired(repair: Repair, batch_indices: Iterable[int]) -> list[str]:
    """Write the damaged shards again, given the batches in the workshop; returns the files that have other bytes now.

    Raises ShardError when an image is still lost.
    """
    folder, manifest = repair.folder, read_manifest(repair.folder)
    made: dict[str, TarSample] = {}
    for index in batch_indices:
        made |= whole_samples(part_path(repair.workshop, index), manifest)
    changed = []
    for entry in manifest["shards"]:
        if entry["file"] not in repair.faults:
            continue
        path = folder / entry["file"]
        samples = made | whole_samples(path, manifest)
        if lost := [key for key in entry["keys"] if key not in samples]:
            raise ShardError(f"{path} is damaged: it lacks {lost[0]}; {REMAKE}")
        write_shard(path, [(key, samples[key]) for key in entry["keys"]])
        current = shard_entry(path, entry["class"], EXTENSIONS[manifest["image_format"]])
        if current != entry:
            changed.append(entry["file"])
            entry |= current
    if changed:
        manifest["scores"] = mean_scores(_all_metadata(folder, manifest))
        write_manifest(folder, manifest)
    if repair.workshop.exists():
        shutil.rmtree(repair.workshop)
    return changed


def whole_samples(path: Path, manifest: Mapping[str, Any]) -> dict[str, TarSample]:
    """The whole images of a set in a tar, by key. Each has the fingerprint of the set as it was when it was made."""
    whole = find_whole(path, fingerprints_of(manifest))
    return {key: TarSample(path, positions) for key, positions in whole.items()}


def _all_metadata(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    paths = [folder / entry["file"] for entry in manifest["shards"]]
    return [
        require_whole(path, key, read_files(path, positions))
        for path in paths
        for key, positions in read_members(path).items()
    ]
