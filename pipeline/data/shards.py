"""Class-organised tar shards: one atomic part file for each batch, then a deterministic pack with a manifest.

Layout of a round's folder: `parts/000012.tar` while it is being made; `train/0003-00001.tar`, `manifest.json`,
`_info.json`, `README.md` when it is complete. The manifest is written last, so a folder that has one is complete.
"""

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
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import atomic_file, read_json, read_range, sha256_of, write_json
from pipeline.runtime.fingerprint import fingerprint

FORMAT = 1


SPLIT = "train"


MANIFEST = "manifest.json"


# One shard holds one class, so the tar's name and its members' folder are the class, padded to keep label order.
CLASS_DIGITS = 4


class ShardError(ValueError):
    """A shard, part or manifest that cannot be used; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One synthetic image: its number in the run, its class, its file bytes, and what is known about it."""

    number: int
    label: int
    image: bytes
    evidence: dict[str, Any]

    @property
    def key(self) -> str:
        """`0003/000042`: class folder and image number; no dots, as WebDataset splits names there."""
        return f"{self.label:0{CLASS_DIGITS}d}/{self.number:06d}"


@dataclass(frozen=True)
class _Place:
    """Where one sample's members lie: tar file, and (offset, size) for each extension."""

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
                    "json": json.dumps(sample.evidence, sort_keys=True, allow_nan=False).encode(),
                }
            )


def read_members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Sample key to extension to (offset, size) of one tar, in file order; ShardError when it is damaged."""
    members: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members[key][extension] = (member.offset_data, member.size)
        _check_end(path, members)
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path} is damaged ({error}); remove it and run `make synthesize` again") from error
    return dict(members)


def _check_end(path: Path, members: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """Raise tarfile.ReadError when the end marker is missing: tarfile takes a cut between members for the end."""
    ends = [offset + size for extensions in members.values() for offset, size in extensions.values()]
    with open(path, "rb") as file:
        file.seek(-(-max(ends, default=0) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
            raise tarfile.ReadError("truncated")


def pack(folder: Path, batch_indices: Iterable[int], identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Sort all parts into class shards and write the manifest; running it again writes the same bytes.

    `identity` is what the images depend on; `facts` (num_classes, shape, image_format, images_per_shard, versions)
    go into the manifest. Raises ShardError when a part is missing or damaged.
    """
    by_class: dict[int, list[tuple[str, _Place]]] = defaultdict(list)
    verdicts = []
    for index in batch_indices:
        path = part_path(folder, index)
        for key, members in read_members(path).items():
            place = _Place(path, members)
            by_class[int(key.partition("/")[0])].append((key, place))
            verdicts.append(json.loads(_read(place, "json")))
    entries = []
    for label, samples in sorted(by_class.items()):
        samples.sort(key=lambda sample: sample[0])
        step = facts["images_per_shard"]
        for i in range(0, len(samples), step):
            path = folder / SPLIT / f"{label:0{CLASS_DIGITS}d}-{i // step:05d}.tar"
            entries.append(_write_shard(path, label, samples[i : i + step], EXTENSIONS[facts["image_format"]]))
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
        **facts,
        "num_images": len(verdicts),
        "verdict": summarise(verdicts),
        "shards": entries,
    }
    write_card(folder, manifest)
    write_json(folder / MANIFEST, manifest, indent=None)


def _write_shard(path: Path, label: int, samples: list[tuple[str, _Place]], extension: str) -> dict[str, Any]:
    with atomic_file(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, place in samples:
            tar.write({"__key__": key, **{name: _read(place, name) for name in place.members}})
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


def _read(place: _Place, extension: str) -> bytes:
    return read_range(place.file, *place.members[extension])


def summarise(verdicts: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every number that all verdicts hold as true/false or probability, under its name."""
    names = [name for name, value in verdicts[0].items() if isinstance(value, bool) or name.endswith("probability")]
    return {name: sum(float(v[name]) for v in verdicts) / len(verdicts) for name in sorted(names)}


def remove_parts(folder: Path) -> None:
    """Delete the parts of a round whose manifest is there."""
    assert (folder / MANIFEST).exists()
    parts = folder / "parts"
    if parts.exists():
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete round; ShardError when it is missing, damaged or of another format."""
    path = folder / MANIFEST
    if not path.exists():
        raise ShardError(f"{folder} holds no complete synthetic dataset; run `make synthesize` first")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise ShardError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}; synthesize again")
    return manifest


def check_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ShardError when a shard is missing or has not the size that the manifest says: a check without reading."""
    for entry in manifest["shards"]:
        if problem := _size_problem(folder / entry["file"], entry["bytes"]):
            raise ShardError(f"{problem}; remove {folder} and run `make synthesize` again")


def _size_problem(path: Path, expected: int) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    found = path.stat().st_size
    return (
        None if found == expected else f"{path} has {found} bytes instead of {expected}: it was truncated or replaced"
    )


def verify(folder: Path) -> list[str]:
    """Re-hash every shard against the manifest; one line for each that is missing, truncated or altered."""
    problems = []
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        if problem := _size_problem(path, entry["bytes"]):
            problems.append(problem)
        elif sha256_of(path) != entry["sha256"]:
            problems.append(f"{path} was altered: its SHA-256 is not the manifest's")
    listed = {entry["file"] for entry in manifest["shards"]}
    found = {f"{SPLIT}/{path.name}" for path in (folder / SPLIT).glob("*.tar")}
    problems += [f"{folder / name} is not in the manifest" for name in sorted(found - listed)]
    return problems
