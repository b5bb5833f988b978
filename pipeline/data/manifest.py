"""The manifest of a set of images, which can come from anywhere: its form, and the names of files and images in it."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.data.codec import EXTENSIONS, MAX_PIXELS, PILLOW_MODES
from pipeline.runtime.digests import unseal
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.form import Form, check_form
from pipeline.runtime.ranges import even_range

FORMAT = 2  # since 2, a manifest has a digest, and so has each image
SPLIT = "train"
# One shard holds one class. The name of the tar and the folder of its members are the class, padded to sort by label.
CLASS_DIGITS = 4
# With more classes, names would not sort by label.
MAX_CLASSES = 10**CLASS_DIGITS
# The keys of a manifest that are read, and of a shard in it.
FORM: Form = {
    **dict.fromkeys(("fingerprint", "teacher", "image_format"), str),
    **dict.fromkeys(("round", "num_images", "num_classes"), int),
    **dict.fromkeys(("identity", "versions"), dict),
    "shape": [int],
    "scores": dict,
    "classes": [int],
    "class_titles": [str],
    "shards": [
        {
            **dict.fromkeys(("file", "sha256"), str),
            **dict.fromkeys(("class", "count", "bytes"), int),
            "keys": [str],
            "offsets": [int],
            "sizes": [int],
        }
    ],
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
    check_form(manifest, FORM)
    _check_optional_keys(manifest)
    if fault := next(_faults(manifest), None):
        raise ValueError(fault)
    return manifest


def _check_optional_keys(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError for keys that need not be there, and have another form than what is read."""
    check_form(manifest["scores"], dict.fromkeys(manifest["scores"], float), "scores")
    check_form({"grown_from": [], **manifest}, {"grown_from": [{"fingerprint": str}]})
    identity = {"images": {}, "synthesis": {}, **manifest["identity"]}
    check_form(identity, {"images": {}, "synthesis": {}}, "identity")
    synthesis = {"num_images": 0, "rounds": 1, "grown_from": [], **identity["synthesis"]}
    check_form(synthesis, {"num_images": int, "rounds": int, "grown_from": [int]}, "identity.synthesis")


def _faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong; only the first fault may be asked for, since each check relies on those before it."""
    yield from _fact_faults(manifest)
    shards, num_images = manifest["shards"], manifest["num_images"]
    if not shards:
        yield "shards: there is none"
    for i, entry in enumerate(shards):
        yield from _shard_faults(entry, manifest["num_classes"], f"shards.{i}")
    if len({entry["file"] for entry in shards}) < len(shards):
        yield "shards: a file is named twice"
    if sum(entry["count"] for entry in shards) != num_images:
        yield f"num_images: {num_images} is not the number of images in the shards"
    if (planned := _planned_images(manifest)) not in (None, num_images):
        yield f"num_images: {num_images}, but its identity is that of a set of {planned}"


def _fact_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    num_classes, shape = manifest["num_classes"], manifest["shape"]
    if fingerprint(manifest["identity"]) != manifest["fingerprint"]:
        yield "its fingerprint is not that of its identity"
    if not 1 <= num_classes <= MAX_CLASSES:
        yield f"num_classes: {num_classes} is not in 1..{MAX_CLASSES}"
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_PIXELS * max(PILLOW_MODES):
        yield f"shape: {shape} is no (channels, height, width) of an image"
    if manifest["image_format"] not in EXTENSIONS:
        yield f"image_format: {manifest['image_format']!r} is not one of {', '.join(EXTENSIONS)}"
    for key in ("classes", "class_titles"):
        if len(manifest[key]) != num_classes:
            yield f"{key}: not one of each of the {num_classes} classes"


def _planned_images(manifest: Mapping[str, Any]) -> int | None:
    """The images that the identity of a set states for its round; None if it does not. A growth has those added."""
    synthesis, index = manifest["identity"].get("synthesis", {}), manifest["round"]
    rounds = synthesis.get("rounds", 1)
    if "num_images" not in synthesis or not 0 <= index < rounds:
        return None
    is_growth = synthesis.get("grown_from") and not manifest.get("grown_from")
    total = synthesis["num_images"] - (synthesis["grown_from"][-1] if is_growth else 0)
    planned = even_range(total, rounds, index)
    return planned.stop - planned.start


def _shard_faults(entry: Mapping[str, Any], num_classes: int, name: str) -> Iterator[str]:
    label, keys, offsets, sizes = (entry[key] for key in ("class", "keys", "offsets", "sizes"))
    if not 0 <= label < num_classes:
        yield f"{name}.class: {label} is not in 0..{num_classes - 1}"
    folder = class_folder(label)
    if not re.fullmatch(rf"{SPLIT}/{folder}-[0-9]{{5,}}\.tar", entry["file"]):
        yield f"{name}.file: {entry['file']!r} is not the name of a shard of class {label}, {shard_name(label, 0)}"
    if not (len(keys) == len(offsets) == len(sizes) == entry["count"] > 0):
        yield f"{name}: keys, offsets and sizes are not `count` values each"
    form = re.compile(rf"{folder}/[0-9]{{6,}}")
    if not all(map(form.fullmatch, keys)):
        yield f"{name}.keys: not all have the form {image_key(label, 0)}"
    if min(*offsets, *sizes) < 0:
        yield f"{name}: an offset or a size is negative"
    if any(offset + size > entry["bytes"] for offset, size in zip(offsets, sizes, strict=True)):
        yield f"{name}: an image ends behind the {entry['bytes']} bytes of the file"
