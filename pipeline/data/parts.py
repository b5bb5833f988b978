"""Part files: the finished images of one batch in a tar, each with a digest by which damage to it is noticed."""

import hashlib
import json
import os
import platform
import tarfile
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from pipeline.data.codec import EXTENSIONS, ImageFormat
from pipeline.data.manifest import class_folder, image_key
from pipeline.data.tars import list_damaged_tar, list_tar
from pipeline.runtime.digests import parse_object
from pipeline.runtime.files import atomic_file, read_range

# What to do about a damaged file of images.
REMAKE = "run the stage `synthesize` again, which makes damaged images anew"
# The folder of the parts in that of a set.
PARTS = "parts"
# In the metadata of an image: its digest, and the fingerprint of what it depends on.
DIGEST, FINGERPRINT = "sha256", "fingerprint"
# (offset, size) in a tar of the files of an image, by their extension.
Positions = dict[str, tuple[int, int]]


class ShardError(ValueError):
    """A shard, part or manifest that is missing or damaged; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One synthetic image: its number in the run, its class, its file bytes, and its metadata with the scores."""

    number: int
    label: int
    image: bytes
    metadata: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the image in a set, see `manifest.image_key`."""
        return image_key(self.label, self.number)


def part_path(folder: Path, batch_index: int) -> Path:
    """The part file of one batch."""
    return folder / PARTS / f"{batch_index:06d}.tar"


def list_parts(folder: Path, suffix: str = ".tar") -> list[Path]:
    """The part files of a set, or the files beside them with another suffix."""
    return sorted((folder / PARTS).glob(f"*{suffix}"))


def write_part(folder: Path, batch_index: int, samples: Iterable[Sample], image_format: ImageFormat) -> None:
    """Write one finished batch, atomically. The metadata of each image get its `sample_digest`.

    Several processes may write the same batch at once: each has a temporary file of its own.
    """
    writer = f"{platform.node()}-{os.getpid()}"
    with atomic_file(part_path(folder, batch_index), writer) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            metadata = {**sample.metadata, DIGEST: sample_digest(sample.key, sample.image, sample.metadata)}
            tar.write(
                {
                    "__key__": sample.key,
                    EXTENSIONS[image_format]: sample.image,
                    "cls": str(sample.label).encode(),
                    "json": json.dumps(metadata, sort_keys=True, allow_nan=False).encode(),
                }
            )


def sample_digest(key: str, image: bytes, metadata: Mapping[str, Any]) -> str:
    """The SHA-256 of an image's key, its metadata without the digest, and its file bytes."""
    others = {name: value for name, value in metadata.items() if name != DIGEST}
    return hashlib.sha256(f"{key}\n{json.dumps(others, sort_keys=True)}\n".encode() + image).hexdigest()


def read_members(path: Path) -> dict[str, Positions]:
    """(offset, size) by sample key and extension of one tar, in file order; raises ShardError when it is damaged."""
    try:
        return _positions(list_tar(path))
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); {REMAKE}") from error


def find_whole(path: Path, fingerprints: Container[str]) -> dict[str, Positions]:
    """As `read_members`, of the whole images with one of these fingerprints, whatever else in the file is damaged."""
    members = _positions(list_damaged_tar(path))
    return {
        key: positions for key, positions in members.items() if _has_fingerprint(path, key, positions, fingerprints)
    }


def _positions(members: Iterable[tarfile.TarInfo]) -> dict[str, Positions]:
    positions: dict[str, Positions] = defaultdict(dict)
    for member in members:
        key, _, extension = member.name.partition(".")
        positions[key][extension] = (member.offset_data, member.size)
    return dict(positions)


def _has_fingerprint(path: Path, key: str, positions: Positions, fingerprints: Container[str]) -> bool:
    try:
        return require_whole(path, key, read_files(path, positions)).get(FINGERPRINT) in fingerprints
    except ShardError:
        return False


def read_files(path: Path, positions: Positions) -> dict[str, bytes]:
    """The bytes of the files of an image by extension, from their (offset, size) in a tar."""
    return {extension: read_range(path, *position) for extension, position in positions.items()}


def require_whole(path: Path, key: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The metadata of an image, given the bytes of its files by extension; raises ShardError unless all are whole."""
    try:
        (image,) = [content for extension, content in files.items() if extension not in ("cls", "json")]
        metadata = parse_object(files["json"])
        is_whole = metadata[DIGEST] == sample_digest(key, image, metadata)
        is_whole &= key.startswith(f"{class_folder(int(files['cls']))}/")
    except (ValueError, KeyError):  # one of the files is missing, or is none of its kind
        is_whole = False
    if not is_whole:
        raise ShardError(f"{path} is damaged: its image {key} does not have the digest in its metadata; {REMAKE}")
    return metadata


def find_fault(path: Path, keys: Iterable[str]) -> str | None:
    """Why a part is not whole, which is to hold the images of these keys; None if it is."""
    try:
        members = read_members(path)
        for key, positions in members.items():
            require_whole(path, key, read_files(path, positions))
    except ShardError as error:
        return str(error)
    return None if list(members) == list(keys) else f"{path} is damaged: it does not hold the images of its batch"


def part_fingerprint(path: Path) -> str | None:
    """The fingerprint in the metadata of the first image of a part; None if they are damaged."""
    try:
        for key, positions in read_members(path).items():
            fingerprint: str | None = require_whole(path, key, read_files(path, positions)).get(FINGERPRINT)
            return fingerprint
    except ShardError:
        pass
    return None
