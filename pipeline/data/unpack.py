"""Sets of images as files in class folders, which torchvision's `ImageFolder` and most other programs read."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.codec import EXTENSIONS
from pipeline.data.damage import find_damage
from pipeline.data.manifest import SPLIT, class_folder
from pipeline.data.parts import ShardError
from pipeline.data.shards import content_identity, read_manifest
from pipeline.runtime.files import (
    explain_os_errors,
    is_whole,
    make_folder,
    read_json,
    read_range,
    sync,
    temporary_path,
    write_json,
    write_text,
)

# Which sets the files are from, and the titles of the classes, in the format of `data.class_names`.
RECORD, CLASS_NAMES = "unpacked.json", "classes.txt"


def unpack(folders: Sequence[Path], target: Path) -> bool:
    """Write every image of the sets to `target`/train/CLASS/NUMBER.png; returns False if it was done before.

    The target appears when it is complete; after a kill, a second call continues. One that holds some of these images,
    of a set before it grew or of some rounds, gets the others. Raises ValueError when it holds other files, or when two
    sets have an image of the same name, ShardError when a shard is damaged.
    """
    manifests = [read_manifest(folder) for folder in folders]
    identity = {"sets": [content_identity(manifest) for manifest in manifests]}
    if not target.name:
        raise ValueError(f"--folder: {target} cannot be replaced by a complete folder at once; name a new one in it")
    has_files = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if has_files and is_whole(target / RECORD) and read_json(target / RECORD) == identity:
        return False
    if has_files and not _holds_some(target, folders, manifests):
        raise ValueError(f"--folder: {target} holds other files, or another set; remove it, or name another folder")
    for folder in folders:
        if problems := find_damage(folder):
            raise ShardError("; ".join(problems))
    keys = [key for manifest in manifests for entry in manifest["shards"] for key in entry["keys"]]
    if len(set(keys)) < len(keys):
        raise ValueError("--folder: the sets have images of the same name; unpack each into a folder of its own")
    temporary = _open_temporary(target, identity, continues=has_files)
    for folder, manifest in zip(folders, manifests, strict=True):
        for entry in manifest["shards"]:
            _unpack_shard(folder / entry["file"], entry, temporary / SPLIT, EXTENSIONS[manifest["image_format"]])
    titles = manifests[0]["class_titles"]
    names = "".join(f"{class_folder(label)} {title}\n" for label, title in enumerate(titles))
    write_text(temporary / CLASS_NAMES, names)
    os.sync()  # all files at once, before their folder gets its name
    with explain_os_errors(target):
        os.replace(temporary, target)
    sync(target.parent)
    return True


def _holds_some(target: Path, folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a folder was unpacked, and its images are unchanged ones of these sets."""
    if not is_whole(target / RECORD):
        return False
    stored = {
        target / SPLIT / f"{key}.{EXTENSIONS[manifest['image_format']]}": (folder / entry["file"], offset, size)
        for folder, manifest in zip(folders, manifests, strict=True)
        for entry in manifest["shards"]
        for key, offset, size in zip(entry["keys"], entry["offsets"], entry["sizes"], strict=True)
    }
    files = (path for path in target.rglob("*") if not path.is_dir())
    images = [path for path in files if path not in (target / RECORD, target / CLASS_NAMES)]
    return all(path in stored and path.read_bytes() == read_range(*stored[path]) for path in images)


def _open_temporary(target: Path, identity: dict[str, Any], *, continues: bool) -> Path:
    """The folder that is written, with what a killed process left of the same sets, or with what the target holds."""
    temporary = temporary_path(target)
    record = temporary / RECORD
    if continues or not (is_whole(record) and read_json(record) == identity):
        shutil.rmtree(temporary, ignore_errors=True)
        if continues:
            with explain_os_errors(target):
                os.replace(target, temporary)
        write_json(record, identity)
    return temporary


def _unpack_shard(shard: Path, entry: dict[str, Any], folder: Path, extension: str) -> None:
    make_folder(folder / class_folder(entry["class"]))
    for key, offset, size in zip(entry["keys"], entry["offsets"], entry["sizes"], strict=True):
        content, path = read_range(shard, offset, size), folder / f"{key}.{extension}"
        if path.is_file() and path.read_bytes() == content:
            continue  # of a killed process
        with explain_os_errors(path):
            path.write_bytes(content)
