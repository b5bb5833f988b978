"""Class-organized tar shards: one atomic part file for each batch, then a deterministic pack with a manifest.

The folder of a round has `parts/000012.tar` while it is made, and `train/0003-00001.tar`, `manifest.json`, `_info.json`
and `README.md` when it is complete. The manifest is written last, so a folder with a manifest is complete. While a
complete set grows, its folder has `growth/`, which is the folder of the added images alone (`pipeline/data/growth.py`).
"""

import hashlib
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from pipeline.data.card import write_card
from pipeline.data.codec import EXTENSIONS, ImageFormat
from pipeline.data.manifest import FORMAT, SPLIT, image_key, parse_manifest, shard_name
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import atomic_file, read_range, sha256_of, write_json
from pipeline.runtime.fingerprint import fingerprint

MANIFEST = "manifest.json"
GROWTH = "growth"
# What to do after the folder of a damaged set is removed.
REMAKE = "run the stage `synthesize` again"


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


@dataclass(frozen=True)
class _TarSample:
    """The position of one sample: its tar file, and (offset, size) of the member of each extension."""

    file: Path
    members: dict[str, tuple[int, int]]


def part_path(folder: Path, batch_index: int) -> Path:
    """The part file of one batch."""
    return folder / "parts" / f"{batch_index:06d}.tar"


def write_part(folder: Path, batch_index: int, samples: Iterable[Sample], image_format: ImageFormat) -> None:
    """Write one finished batch, atomically."""
    with atomic_file(part_path(folder, batch_index)) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write(
                {
                    "__key__": sample.key,
                    EXTENSIONS[image_format]: sample.image,
                    "cls": str(sample.label).encode(),
                    "json": json.dumps(sample.metadata, sort_keys=True, allow_nan=False).encode(),
                }
            )


def read_members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """(offset, size) by sample key and extension of one tar, in file order; raises ShardError when it is damaged."""
    members: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members[key][extension] = (member.offset_data, member.size)
        _check_end(path, members)
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); remove it and run the stage `synthesize` again") from error
    return dict(members)


def _check_end(path: Path, members: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """Raise tarfile.ReadError when the end marker is missing: tarfile does not notice a cut between two members."""
    ends = [offset + size for extensions in members.values() for offset, size in extensions.values()]
    with open(path, "rb") as file:
        file.seek(-(-max(ends, default=0) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
            raise tarfile.ReadError("truncated")


def pack(folder: Path, batch_indices: Iterable[int], identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Sort all parts into class shards and write the manifest; a second call writes the same bytes.

    `identity` is what the images depend on. `facts` go into the manifest. Raises ShardError when a part is missing or
    damaged.
    """
    by_class: dict[int, list[tuple[str, _TarSample]]] = defaultdict(list)
    metadata = []
    for index in batch_indices:
        path = part_path(folder, index)
        for key, members in read_members(path).items():
            sample = _TarSample(path, members)
            by_class[int(key.partition("/")[0])].append((key, sample))
            metadata.append(json.loads(_read(sample, "json")))
    entries = []
    for label, samples in sorted(by_class.items()):
        samples.sort(key=lambda sample: sample[0])
        step = facts["images_per_shard"]
        for i in range(0, len(samples), step):
            path = folder / shard_name(label, i // step)
            entries.append(_write_shard(path, label, samples[i : i + step], EXTENSIONS[facts["image_format"]]))
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
        **facts,
        "num_images": len(metadata),
        "scores": mean_scores(metadata),
        "shards": entries,
    }
    write_card(folder, manifest)
    write_json(folder / MANIFEST, manifest, indent=None)


def _write_shard(path: Path, label: int, samples: list[tuple[str, _TarSample]], extension: str) -> dict[str, Any]:
    with atomic_file(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, sample in samples:
            tar.write({"__key__": key, **{name: _read(sample, name) for name in sample.members}})
    members = read_members(path)
    return {
        "file": f"{SPLIT}/{path.name}",
        "class": label,
        "count": len(samples),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "keys": list(members),
        "offsets": [m[extension][0] for m in members.values()],
        "sizes": [m[extension][1] for m in members.values()],
    }


def _read(sample: _TarSample, extension: str) -> bytes:
    return read_range(sample.file, *sample.members[extension])


def mean_scores(metadata: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of every score that is a probability or true/false, by its name."""
    names = [name for name, value in metadata[0].items() if isinstance(value, bool) or name.endswith("probability")]
    return {name: sum(float(sample[name]) for sample in metadata) / len(metadata) for name in sorted(names)}


def is_packed(folder: Path) -> bool:
    """Whether a round is complete: its manifest is written last."""
    return (folder / MANIFEST).exists()


def remove_parts(folder: Path) -> None:
    """Delete the parts of a packed round."""
    assert is_packed(folder)
    parts = folder / "parts"
    if parts.exists():
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete set, see `parse_manifest`; ShardError when it is missing, damaged or foreign."""
    if not is_packed(folder):
        raise ShardError(f"{folder} holds no complete synthetic dataset; run the stage `synthesize` first")
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes())
    except ValueError as error:
        raise ShardError(
            f"{path} is damaged, or no manifest of a set ({error}); remove {folder} and make or fetch the set again"
        ) from error


def content_identity(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of a set, and a hash of the content of all its shards."""
    digests = "\n".join(f"{entry['file']} {entry['sha256']}" for entry in manifest["shards"])
    return {"fingerprint": manifest["fingerprint"], "hash": hashlib.sha256(digests.encode()).hexdigest()}


def check_sizes(folder: Path, manifest: Mapping[str, Any], fix: str = REMAKE) -> None:
    """Raise ShardError, with the fix, when a shard is missing or has not the manifest's size; reads no shard."""
    for entry in manifest["shards"]:
        if problem := _size_problem(folder / entry["file"], entry["bytes"]):
            raise ShardError(f"{problem}; remove {folder} and {fix}")


def _size_problem(path: Path, expected: int) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    return None if size == expected else f"{path} has {size} bytes instead of {expected}: it was truncated or replaced"


def find_damage(folder: Path) -> list[str]:
    """Hash every shard and compare with the manifest; returns one line for each missing, truncated or altered shard."""
    problems = []
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        if problem := _size_problem(path, entry["bytes"]):
            problems.append(problem)
        elif sha256_of(path) != entry["sha256"]:
            problems.append(f"{path} was altered: its SHA-256 is not the manifest's")
    listed = {entry["file"] for entry in manifest["shards"]}
    existing = {f"{SPLIT}/{path.name}" for path in (folder / SPLIT).glob("*.tar")}
    if not is_packed(folder / GROWTH):  # a killed process may have left shards of it in this folder
        problems += [f"{folder / name} is not in the manifest" for name in sorted(existing - listed)]
    return problems
