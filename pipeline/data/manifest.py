"""The manifest of a set of images, which can come from anywhere: its form, and the names of files and images in it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.data.codec import EXTENSIONS
from pipeline.runtime.digests import unseal

FORMAT = 2  # since 2, a manifest has a digest, and so has each image
SPLIT = "train"
# One shard holds one class. The name of the tar and the folder of its members are the class, padded to sort by label.
CLASS_DIGITS = 4
# With more classes, names would not sort by label.
MAX_CLASSES = 10**CLASS_DIGITS
# The types of the keys of a manifest, and of a shard in it.
KEYS: dict[str, type] = {
    "fingerprint": str,
    "identity": dict,
    "versions": dict,
    "round": int,
    "teacher": str,
    "num_images": int,
    "num_classes": int,
    "shape": list,
    "image_format": str,
    "scores": dict,
    "classes": list,
    "class_titles": list,
    "shards": list,
}
SHARD_KEYS: dict[str, type] = {
    "file": str,
    "class": int,
    "count": int,
    "bytes": int,
    "sha256": str,
    "keys": list,
    "offsets": list,
    "sizes": list,
}


def class_folder(label: int) -> str:
    """The folder of the images of a class, in a tar and unpacked."""
    return f"{label:0{CLASS_DIGITS}d}"


def image_key(label: int, number: int) -> str:
    """`0003/000042`: class folder and image number; without dots, at which WebDataset splits names."""
    return f"{class_folder(label)}/{number:06d}"


def shard_name(label: int, number: int) -> str:
    """The file of shard 0, 1, ... of a class, relative to the folder of its set."""
    return f"{SPLIT}/{class_folder(label)}-{number:05d}.tar"


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The manifest in the bytes of a file; raises ValueError, saying what is wrong, unless it is one of a set.

    Names in it cannot lead out of the folder of the set.
    """
    manifest = unseal(content)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"it has format {manifest.get('format')!r}, this version reads {FORMAT}")
    if fault := next(_faults(manifest), None):
        raise ValueError(fault)
    return manifest


def _faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong; only the first fault may be asked for, since each check relies on those before it."""
    yield from _type_faults(manifest, KEYS, "")
    yield from _fact_faults(manifest)
    yield from _growth_faults(manifest)
    shards = manifest["shards"]
    if not shards:
        yield "shards: there is none"
    for i, entry in enumerate(shards):
        yield from _shard_faults(entry, manifest["num_classes"], f"shards.{i}")
    if len({entry["file"] for entry in shards}) < len(shards):
        yield "shards: a file is named twice"
    if sum(entry["count"] for entry in shards) != manifest["num_images"]:
        yield f"num_images: {manifest['num_images']} is not the number of images in the shards"


def _fact_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    num_classes, shape = manifest["num_classes"], manifest["shape"]
    if not 1 <= num_classes <= MAX_CLASSES:
        yield f"num_classes: {num_classes} is not in 1..{MAX_CLASSES}"
    if len(shape) != 3 or not all(_is(side, int) and side > 0 for side in shape):
        yield f"shape: {shape} is no (channels, height, width)"
    if manifest["image_format"] not in EXTENSIONS:
        yield f"image_format: {manifest['image_format']!r} is not one of {', '.join(EXTENSIONS)}"
    if not all(_is(score, int) or _is(score, float) for score in manifest["scores"].values()):
        yield "scores: not all are numbers"
    for key in ("images", "synthesis"):  # whose keys are read
        if not _is(manifest["identity"].get(key, {}), dict):
            yield f"identity.{key}: no object"
    for key, kind in (("classes", int), ("class_titles", str)):
        values = manifest[key]
        if not (len(values) == num_classes and all(_is(value, kind) for value in values)):
            yield f"{key}: not one of each of the {num_classes} classes"


def _growth_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the former sizes of a set, in the manifest and in the identity."""
    steps = manifest.get("grown_from", [])
    if not _is(steps, list) or not all(_is(step, dict) and _is(step.get("fingerprint"), str) for step in steps):
        yield "grown_from: no list of objects with a fingerprint"
    synthesis = manifest["identity"].get("synthesis", {})
    former = synthesis.get("grown_from", [])
    if not _is(former, list) or not all(_is(size, int) for size in (*former, synthesis.get("num_images", 0))):
        yield "identity.synthesis: its num_images or grown_from are no numbers"


def _shard_faults(entry: Any, num_classes: int, name: str) -> Iterator[str]:
    if not _is(entry, dict):
        yield f"{name}: no object"
    yield from _type_faults(entry, SHARD_KEYS, f"{name}.")
    label, keys, offsets, sizes = (entry[key] for key in ("class", "keys", "offsets", "sizes"))
    if not 0 <= label < num_classes:
        yield f"{name}.class: {label} is not in 0..{num_classes - 1}"
    folder = class_folder(label)
    if not re.fullmatch(rf"{SPLIT}/{folder}-[0-9]{{5,}}\.tar", entry["file"]):
        yield f"{name}.file: {entry['file']!r} is not the name of a shard of class {label}, {shard_name(label, 0)}"
    if not (len(keys) == len(offsets) == len(sizes) == entry["count"] > 0):
        yield f"{name}: keys, offsets and sizes are not `count` values each"
    form = re.compile(rf"{folder}/[0-9]{{6,}}")
    if not all(_is(key, str) and form.fullmatch(key) for key in keys):
        yield f"{name}.keys: not all have the form {image_key(label, 0)}"
    if not all(_is(value, int) and value >= 0 for value in (*offsets, *sizes)):
        yield f"{name}: an offset or a size is no number of bytes"
    if any(offset + size > entry["bytes"] for offset, size in zip(offsets, sizes, strict=True)):
        yield f"{name}: an image ends behind the {entry['bytes']} bytes of the file"


def _type_faults(mapping: Mapping[str, Any], types: Mapping[str, type], prefix: str) -> Iterator[str]:
    for key, kind in types.items():
        if key not in mapping:
            yield f"{prefix}{key} is missing"
        elif not _is(mapping[key], kind):
            yield f"{prefix}{key} is of type {type(mapping[key]).__name__}, not {kind.__name__}"


def _is(value: Any, kind: type) -> bool:
    """Whether the type is this one: true and false are no numbers."""
    return type(value) is kind
