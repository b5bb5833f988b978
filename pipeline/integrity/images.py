"""The state of the files of a set of images: while it is made, when it is complete, and while it grows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.damage import damaged_shards, unlisted_shards
from pipeline.data.growth import growth_folder
from pipeline.data.manifest import parse_manifest
from pipeline.data.parts import PARTS, REMAKE, ShardError, find_fault, part_fingerprint, part_path
from pipeline.data.repair import REPAIR, whole_samples
from pipeline.data.shards import IDENTITY_FILE, MANIFEST, MANIFEST_COPY, TEXTS, is_packed, read_manifest
from pipeline.identity import synthesis_identity
from pipeline.integrity.files import FileState, state_of
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import read_json, require_sealed
from pipeline.runtime.fingerprint import fingerprint
from pipeline.synthesis.plan import plan_batches


def check_round(config: RunConfig, round_index: int) -> Iterator[FileState]:
    """The state of every file of the set of a round."""
    folder = config.round_folder(round_index)
    growth, workshop = growth_folder(folder), folder / REPAIR
    for place in (folder, growth, workshop):
        yield from _check_parts(config, round_index, place)
    yield from _check_texts(workshop)
    for place in (folder, growth):
        if is_packed(place):
            yield from check_complete_set(place, partial(_require_own_set, config, round_index, place))
        else:
            yield from _check_texts(place)
    if is_packed(folder):
        missing = [path for name in (MANIFEST, MANIFEST_COPY, *TEXTS) if not (path := folder / name).exists()]
        yield from (FileState(path, "damaged", f"{path} is missing; {REMAKE}") for path in missing)


def check_complete_set(
    folder: Path, require_own: Callable[[], None] | None = None, fix: str = REMAKE
) -> Iterator[FileState]:
    """The state of the manifest, every shard, and every image in them, of any complete set; `fix` is what to do."""
    for path in (folder / MANIFEST, folder / MANIFEST_COPY):
        if path.exists():
            yield state_of(path, partial(_require_manifest, fix), require_own)
    yield from _check_texts(folder)
    try:
        manifest = read_manifest(folder)
    except ShardError:  # both are damaged
        return
    faults = damaged_shards(folder, manifest)
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        fault = faults.get(entry["file"]) or _image_fault(path, entry, manifest)
        yield FileState(path, "damaged", f"{fault}; {fix}") if fault else FileState(path, "whole")
    for name in unlisted_shards(folder, manifest):
        yield FileState(folder / name, "foreign", f"{folder / name} is not in the manifest; remove it")


def _require_manifest(fix: str, path: Path) -> None:
    try:
        if parse_manifest(path.read_bytes()) != read_manifest(path.parent):
            raise ValueError(f"it is no copy of {MANIFEST}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {fix}") from error


def _check_texts(folder: Path) -> Iterator[FileState]:
    """The files beside the shards. The identity must be the one that the manifest states."""
    for path in (folder / name for name in TEXTS):
        if path.exists():
            yield state_of(path, _require_stated_identity if path.name == IDENTITY_FILE else require_sealed)


def _require_stated_identity(path: Path) -> None:
    stated = read_json(path)
    if is_packed(path.parent) and fingerprint(stated) != read_manifest(path.parent)["fingerprint"]:
        raise ValueError(f"{path} is damaged: it is not the identity that the manifest states; {REMAKE}")


def _image_fault(path: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
    """Which image of a shard is not whole, has another label, or is of another set."""
    whole = whole_samples(path, manifest)
    lost = [key for key in entry["keys"] if key not in whole]
    return f"{path}: {lost[0]} does not have the digest and the fingerprint of this set" if lost else None


def _check_parts(config: RunConfig, round_index: int, folder: Path) -> Iterator[FileState]:
    paths = sorted((folder / PARTS).glob("*.tar"))
    steps = config.synthesis.growth if paths else ()
    specs = [s for step in steps for s in plan_batches(step, len(config.class_titles), config.seed, round_index)]
    keys = {part_path(folder, spec.index): spec.keys for spec in specs}
    for path in paths:
        if path in keys:
            yield state_of(
                path, partial(_require_whole_part, keys[path]), partial(_require_own_part, config, round_index, path)
            )
        else:
            yield FileState(path, "foreign", f"{path} is no batch of this run; remove it")


def _require_whole_part(keys: Sequence[str], path: Path) -> None:
    if fault := find_fault(path, keys):
        raise ShardError(fault)


def _require_own_part(config: RunConfig, round_index: int, path: Path) -> None:
    _require_own_fingerprint(config, round_index, path, part_fingerprint(path))


def _require_own_set(config: RunConfig, round_index: int, folder: Path) -> None:
    _require_own_fingerprint(config, round_index, folder, read_manifest(folder)["fingerprint"])


def _require_own_fingerprint(config: RunConfig, round_index: int, path: Path, stated: str | None) -> None:
    if stated not in {fingerprint(synthesis_identity(config, round_index, step)) for step in config.synthesis.growth}:
        raise ConfigError(f"{path} was made with another configuration")
