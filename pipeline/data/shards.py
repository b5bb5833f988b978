"""Class-organized tar shards: one atomic part file for each batch, then a deterministic pack with a manifest.

The folder of a round has `parts/000012.tar` while it is made, and `train/0003-00001.tar`, `manifest.json`, `_info.json`
and `README.md` when it is complete. The manifest is written last, so a folder with a manifest is complete. While a
complete set grows, its folder has `growth/`, which is the folder of the added images alone (`pipeline/data/growth.py`).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from pipeline.data.card import CARD_FILES, write_card
from pipeline.data.codec import EXTENSIONS
from pipeline.data.manifest import FORMAT, SPLIT, parse_manifest, shard_name
from pipeline.data.parts import PARTS, REMAKE, Positions, ShardError, part_path, read_files, read_members, require_whole
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import atomic_file, sha256_of, write_json
from pipeline.runtime.fingerprint import fingerprint

# The copy is read when the manifest is missing or damaged.
MANIFEST, MANIFEST_COPY = "manifest.json", "manifest.copy.json"
GROWTH = "growth"
# What a run writes beside the shards, and with the card all files there but the manifest.
IDENTITY_FILE, CONFIG_FILE = "identity.json", "config.yaml"
TEXTS = (*CARD_FILES, IDENTITY_FILE, CONFIG_FILE)


@dataclass(frozen=True)
class TarSample:
    """The position of one sample: its tar file, and (offset, size) of the member of each extension."""

    file: Path
    members: Positions


def pack(folder: Path, batch_indices: Iterable[int], identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Sort all parts into class shards and write the manifest; a second call writes the same bytes.

    `identity` is what the images depend on. `facts` go into the manifest. Raises ShardError when a part is missing or
    damaged.
    """
    by_class: dict[int, list[tuple[str, TarSample]]] = defaultdict(list)
    for index in batch_indices:
        path = part_path(folder, index)
        for key, members in read_members(path).items():
            by_class[int(key.partition("/")[0])].append((key, TarSample(path, members)))
    entries, metadata = [], []
    for label, samples in sorted(by_class.items()):
        samples.sort(key=lambda sample: sample[0])
        step = facts["images_per_shard"]
        for i in range(0, len(samples), step):
            path = folder / shard_name(label, i // step)
            metadata += write_shard(path, samples[i : i + step])
            entries.append(shard_entry(path, label, EXTENSIONS[facts["image_format"]]))
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
        **facts,
        "num_images": len(metadata),
        "scores": mean_scores(metadata),
        "shards": entries,
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the card, a copy of the manifest, and last the manifest itself."""
    write_card(folder, manifest)
    for name in (MANIFEST_COPY, MANIFEST):
        write_json(folder / name, manifest, indent=None)


def write_shard(path: Path, samples: Iterable[tuple[str, TarSample]]) -> list[dict[str, Any]]:
    """Write the tar of a shard; returns the metadata of its images. Raises ShardError when one is damaged."""
    metadata = []
    with atomic_file(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, sample in samples:
            files = read_files(sample.file, sample.members)
            metadata.append(require_whole(sample.file, key, files))
            tar.write({"__key__": key, **files})
    return metadata


def shard_entry(path: Path, label: int, extension: str) -> dict[str, Any]:
    """What the manifest states of the shard of a class; raises ShardError when it is no tar of images of the format."""
    members = read_members(path)
    if lacking := [key for key, files in members.items() if extension not in files]:
        raise ShardError(f"{path} is damaged: its image {lacking[0]} has no .{extension}; {REMAKE}")
    return {
        "file": f"{SPLIT}/{path.name}",
        "class": label,
        "count": len(members),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "keys": list(members),
        "offsets": [m[extension][0] for m in members.values()],
        "sizes": [m[extension][1] for m in members.values()],
    }


def mean_scores(metadata: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of every score that is a probability or true/false, by its name."""
    names = [name for name, value in metadata[0].items() if isinstance(value, bool) or name.endswith("probability")]
    return {name: sum(float(sample[name]) for sample in metadata) / len(metadata) for name in sorted(names)}


def is_packed(folder: Path) -> bool:
    """Whether a set is complete: its manifest is written last, and then its parts are removed."""
    is_copy_alone = (folder / MANIFEST_COPY).exists() and not (folder / PARTS).exists()
    return (folder / MANIFEST).exists() or is_copy_alone


def remove_parts(folder: Path) -> None:
    """Delete the parts of a packed round."""
    assert is_packed(folder)
    parts = folder / PARTS
    if parts.exists():
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete set, see `parse_manifest`; ShardError when it is missing, damaged or foreign."""
    if not is_packed(folder):
        fix = "name the folder of one, or run the stage `synthesize` first"
        raise ShardError(f"{folder} holds no complete synthetic dataset; {fix}")
    faults = []
    for path in (folder / MANIFEST, folder / MANIFEST_COPY):
        try:
            return parse_manifest(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            faults.append(f"{path} is damaged, or no manifest of a set ({error})")
    raise ShardError(f"{'; '.join(faults)}; remove {folder} and make or fetch the set again")


def fingerprints_of(manifest: Mapping[str, Any]) -> list[str]:
    """The fingerprints of a set and of those that it has grown from; its own is the last."""
    return [*(step["fingerprint"] for step in manifest.get("grown_from", ())), manifest["fingerprint"]]


def content_identity(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of a set, and a hash of the content of all its shards."""
    digests = "\n".join(f"{entry['file']} {entry['sha256']}" for entry in manifest["shards"])
    return {"fingerprint": manifest["fingerprint"], "hash": hashlib.sha256(digests.encode()).hexdigest()}
