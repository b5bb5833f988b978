"""Damage to a complete set: what in its folder differs from the manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.codec import EXTENSIONS, ImageError, open_with_pillow
from pipeline.data.manifest import SPLIT
from pipeline.data.parts import REMAKE, ShardError
from pipeline.data.shards import GROWTH, is_packed, read_manifest, shard_entry
from pipeline.runtime.files import sha256_of


def check_sizes(folder: Path, manifest: Mapping[str, Any], fix: str = REMAKE) -> None:
    """Raise ShardError, with the fix, when a shard is missing or has not the manifest's size; reads no shard."""
    for entry in manifest["shards"]:
        if problem := _size_problem(folder / entry["file"], entry["bytes"]):
            raise ShardError(f"{problem}; {fix}")


def find_damage(folder: Path, fix: str = REMAKE) -> list[str]:
    """One line, with the fix, for each shard that is missing, differs from the manifest, or is not in it."""
    manifest = read_manifest(folder)
    damaged = [f"{problem}; {fix}" for problem in damaged_shards(folder, manifest).values()]
    unlisted = [f"{folder / file} is not in the manifest; remove it" for file in unlisted_shards(folder, manifest)]
    return damaged + unlisted


def damaged_shards(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each shard, by its file, that is missing or differs from the manifest; reads every shard."""
    problems = {entry["file"]: _shard_problem(folder / entry["file"], entry, manifest) for entry in manifest["shards"]}
    return {file: problem for file, problem in problems.items() if problem}


def unlisted_shards(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The files in the folder of the shards that the manifest does not name, which programs that list it would read."""
    if is_packed(folder / GROWTH):
        return []  # a killed process may have left shards of it in this folder
    listed = {entry["file"] for entry in manifest["shards"]}
    return sorted({f"{SPLIT}/{path.name}" for path in (folder / SPLIT).glob("*.tar")} - listed)


def _shard_problem(path: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
    if problem := _size_problem(path, entry["bytes"]):
        return problem
    if sha256_of(path) != entry["sha256"]:
        return f"{path} was altered: its SHA-256 is not the manifest's"
    try:
        is_as_stated = shard_entry(path, entry["class"], EXTENSIONS[manifest["image_format"]]) == entry
    except ShardError:
        is_as_stated = False
    if not is_as_stated or not _has_stated_headers(path, entry, manifest):
        return f"{path} does not hold the images that the manifest states"
    return None


def _has_stated_headers(path: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether the header of each image has the format and the size of the set.

    Decoding a larger image, or a GIF of many frames, could take all memory.
    """
    _, height, width = manifest["shape"]
    stated = manifest["image_format"].upper(), (width, height)
    try:
        with open(path, "rb") as file:
            for offset, num_bytes in zip(entry["offsets"], entry["sizes"], strict=True):
                file.seek(offset)
                with open_with_pillow(file.read(num_bytes), path.name) as image:
                    if (image.format, image.size) != stated:
                        return False
    except ImageError:
        return False
    return True


def _size_problem(path: Path, expected: int) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    return None if size == expected else f"{path} has {size} bytes instead of {expected}: it was truncated or replaced"
