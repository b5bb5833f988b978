"""Growth of a complete set: the added images are made as a set of their own, which then joins the one that exists.

The shards that exist stay as they are. Readers of the manifest see the set at its former size until the manifest is
replaced. Programs that list the tars, or read `_info.json`, can see added shards in the moment in which they join.
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.card import CARD_FILES
from pipeline.data.damage import check_sizes
from pipeline.data.manifest import SPLIT, shard_name
from pipeline.data.shards import GROWTH, MANIFEST, MANIFEST_COPY, is_packed, read_manifest, write_manifest
from pipeline.runtime.files import sync, temporary_path


def growth_folder(folder: Path) -> Path:
    """The folder in which the added images of a set are made."""
    return folder / GROWTH


def sizes_so_far(identity: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of images at which a set of this identity was complete, in rising order; the last one is its size."""
    synthesis = identity.get("synthesis", {})
    return *synthesis.get("grown_from", ()), synthesis.get("num_images", 0)


def join_growth(folder: Path) -> None:
    """Move the complete set in `growth_folder(folder)` into the set in `folder`; after a kill, a second call continues.

    The manifest has the fingerprint and the identity of the grown set, and those of the set before under `grown_from`.
    """
    growth = growth_folder(folder)
    manifest, added = read_manifest(folder), read_manifest(growth)
    _move_shards(folder, manifest, added)
    check_sizes(folder, manifest, f"remove {growth} and run the stage `synthesize` again")
    write_manifest(folder, manifest)
    _move_texts(folder)
    remove_joined(folder)


def remove_joined(folder: Path) -> None:
    """Remove the folder of added images that are in the set; a process may have been killed before or while it did."""
    growth = growth_folder(folder)
    removed = temporary_path(growth)  # a folder that is half removed must not be taken for a growth that was begun
    if removed.exists():
        shutil.rmtree(removed)
    if is_packed(growth) and read_manifest(growth)["fingerprint"] == read_manifest(folder)["fingerprint"]:
        os.replace(growth, removed)
        shutil.rmtree(removed)


def _move_texts(folder: Path) -> None:
    """Move the configuration and the identity; after a kill before it, the identity is written from the manifest."""
    for path in growth_folder(folder).iterdir():
        if path.is_file() and path.name not in (MANIFEST, MANIFEST_COPY, *CARD_FILES):
            os.replace(path, folder / path.name)


def _move_shards(folder: Path, manifest: dict[str, Any], added: dict[str, Any]) -> None:
    """Move the added shards behind those of their classes, and make `manifest` that of the grown set."""
    growth, next_number = growth_folder(folder), Counter(entry["class"] for entry in manifest["shards"])
    former = {key: manifest[key] for key in ("num_images", "fingerprint", "versions")}
    num_images, num_added = manifest["num_images"], added["num_images"]
    entries = list(manifest["shards"])
    for entry in added["shards"]:
        file = shard_name(entry["class"], next_number[entry["class"]])
        next_number[entry["class"]] += 1
        if (growth / entry["file"]).exists():
            os.replace(growth / entry["file"], folder / file)
        entries.append({**entry, "file": file})
    sync(folder / SPLIT)
    scores = {
        name: (num_images * value + num_added * added["scores"][name]) / (num_images + num_added)
        for name, value in manifest["scores"].items()
    }
    manifest |= {
        **added,
        "num_images": num_images + num_added,
        "scores": scores,
        "grown_from": [*manifest.get("grown_from", []), former],
        "shards": sorted(entries, key=lambda entry: entry["file"]),
    }
