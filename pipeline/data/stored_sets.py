"""The copy of a set of images in an object store: its parts while it is made, its shards when it is complete.

As in a folder, the manifest is stored last, and the parts are removed after that.
"""

import shutil
from collections.abc import Collection, Container, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.growth import growth_folder
from pipeline.data.manifest import parse_manifest
from pipeline.data.parts import PARTS, ShardError, find_fault, part_fingerprint, part_path
from pipeline.data.shards import MANIFEST, MANIFEST_COPY, TEXTS, fingerprints_of, is_packed, read_manifest, remove_parts
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import atomic_file, require_sealed, sha256_of
from pipeline.runtime.object_store import ObjectStore


def pull_set(store: ObjectStore, folder: Path) -> bool:
    """Get what is missing here of a complete set; returns whether anything was.

    A set that is complete here stays as it is, unless the one in the store has grown from it. Damaged copies of shards
    are left out with a warning.
    """
    copies = store.sizes(folder)
    content = _stored_manifest(store, folder, copies)
    if content is None:
        return False
    stored, existing = parse_manifest(content), _existing_manifest(folder)
    if existing not in (None, stored) and not _has_grown_from(stored, existing):
        return False
    entries = {folder / entry["file"]: entry for entry in stored["shards"]}
    if existing == stored:  # a file of the right size is left to the repair
        missing = [path for path, entry in entries.items() if _size(path) != entry["bytes"]]
        texts = [folder / name for name in TEXTS if not (folder / name).exists()]
    else:
        missing = [path for path, entry in entries.items() if not _is_shard(path, entry)]
        texts = [folder / name for name in TEXTS]
    if existing != stored:
        _require_no_other_parts(store, folder, stored)
    checks = {path: partial(_require_shard, entries[path]) for path in missing if path in copies}
    checks |= {path: partial(require_sealed, ending=path.suffix) for path in texts if path in copies}
    store.pull_all(checks)
    if existing != stored:
        for name in (MANIFEST_COPY, MANIFEST):
            with atomic_file(folder / name) as file:
                file.write(content)
        remove_parts(folder)
        shutil.rmtree(growth_folder(folder), ignore_errors=True)  # its images are in the set
    return bool(checks) or existing != stored


def push_set(
    store: ObjectStore, folder: Path, batch_indices: Collection[int], written_again: Iterable[str] = ()
) -> None:
    """Make the copy of a complete set equal to it, and remove the copies of the parts of its batches.

    `written_again` are shards that were damaged here. Raises ConfigError when the store has a set of another identity.
    """
    manifest, copies = read_manifest(folder), store.sizes(folder)
    content = _stored_manifest(store, folder, copies)
    stored = None if content is None else parse_manifest(content)
    if stored is not None and stored["fingerprint"] not in fingerprints_of(manifest):
        raise _other_images(store.address(folder))
    stated = {entry["file"]: entry["sha256"] for entry in (stored or manifest)["shards"]}
    again = {*written_again, *(e["file"] for e in manifest["shards"] if stated.get(e["file"]) != e["sha256"])}
    shards = {folder / entry["file"]: entry for entry in manifest["shards"]}
    store.push_all(p for p, entry in shards.items() if entry["file"] in again or copies.get(p) != entry["bytes"])
    for path in (folder / name for name in (*TEXTS, MANIFEST_COPY, MANIFEST)):  # the manifest last
        if path.exists() and not (path in copies and store.read(path) == path.read_bytes()):
            store.push(path)
    store.remove(path for path in copies if path.parent.name == PARTS and _index(path) in batch_indices)


def exchange_parts(store: ObjectStore, folder: Path, keys: Mapping[int, Iterable[str]], fingerprint: str) -> None:
    """Get the parts that are missing here, and store those that are missing there.

    `keys` are those of the images of each batch. A part of another size in the store takes the place of the one here.
    Damaged copies are left out with a warning. Raises ConfigError, and stores nothing, when a part in the store has
    another `fingerprint`.
    """
    copies, paths = store.sizes(folder / PARTS), {part_path(folder, index): keys[index] for index in keys}
    stored = [path for path in paths if path in copies]
    # The first also if it is here: its fingerprint tells of which configuration the others are.
    wanted = stored[:1] + [path for path in stored[1:] if _size(path) != copies[path]]
    store.pull_all({path: partial(_require_part, paths[path], fingerprint, store.address(path)) for path in wanted})
    store.push_all(path for path in paths if path.exists() and _size(path) != copies.get(path))


def _stored_manifest(store: ObjectStore, folder: Path, copies: Container[Path]) -> bytes | None:
    """The content of the manifest in the store; None if there is none, or only damaged ones."""
    for path in (folder / MANIFEST, folder / MANIFEST_COPY):
        if path in copies:
            content = store.read(path)
            with suppress(ValueError):
                parse_manifest(content)
                return content
    return None


def _existing_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder) if is_packed(folder) else None
    except ShardError:  # damaged, so that a whole one takes its place
        return None


def _has_grown_from(manifest: Mapping[str, Any], former: Mapping[str, Any] | None) -> bool:
    return former is not None and former["fingerprint"] in fingerprints_of(manifest)[:-1]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _is_shard(path: Path, entry: Mapping[str, Any]) -> bool:
    return bool(_size(path) == entry["bytes"] and sha256_of(path) == entry["sha256"])


def _require_shard(entry: Mapping[str, Any], path: Path) -> None:
    if not _is_shard(path, entry):
        raise ShardError(f"{path} is damaged: it is not the shard of the manifest")


def _require_part(keys: Iterable[str], fingerprint: str, address: str, path: Path) -> None:
    if fault := find_fault(path, keys):
        raise ShardError(fault)
    if part_fingerprint(path) != fingerprint:
        raise _other_images(address)


def _require_no_other_parts(store: ObjectStore, folder: Path, stored: Mapping[str, Any]) -> None:
    """Raise ConfigError when batches were made here that the set in the store does not hold."""
    places = (folder / PARTS, growth_folder(folder) / PARTS)
    made = {part_fingerprint(path) for place in places for path in place.glob("*.tar")}
    if not made <= {*fingerprints_of(stored), None}:
        raise _other_images(store.address(folder))


def _other_images(address: str) -> ConfigError:
    return ConfigError(
        f"object_store: {address} holds images of another configuration than the folder here; set another `name` or "
        "another address, or remove the images that you do not need"
    )


def _index(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None
