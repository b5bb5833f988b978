"""The sets that `distill.shards` names: do they fit the run, and which class of the run is each of their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.class_names import listed
from pipeline.data.damage import check_sizes
from pipeline.data.parts import ShardError
from pipeline.data.remote import is_remote
from pipeline.data.shards import content_identity, is_packed, read_manifest
from pipeline.models.config import ImageConfig

KEY = "distill.shards"


@dataclass(frozen=True, kw_only=True)
class RunClasses:
    """The images of a run, and the teacher's label and the title of each of its classes."""

    images: ImageConfig
    labels: Sequence[int]
    titles: Sequence[str]


def read_given(name: str, folder: Path) -> dict[str, Any]:
    """The manifest of the set that the config calls `name`; raises ShardError when the folder holds none."""
    if not is_packed(folder):
        if is_remote(name):
            raise ShardError(f"{KEY}: {name} is not fetched yet; run the stage `distill` first")
        rounds = sorted(str(path.parent) for path in folder.glob("*/manifest.json"))
        hint = f"name its rounds: {listed(rounds)}" if rounds else "name the folder of a complete set"
        raise ShardError(f"{KEY}: {name} holds no manifest.json; {hint}")
    return read_manifest(folder)


def given_fix(folder: Path) -> str:
    """What to do about a damaged set that a run was given."""
    return f"run the stage `synthesize` of the run that made it, or remove {folder} and make or fetch it again"


def given_identity(folders: Mapping[str, Path]) -> dict[str, Any]:
    """What a student depends on if it learns from these sets, by their order."""
    return {str(i): content_identity(read_given(*item)) for i, item in enumerate(folders.items())}


def labels_in_run(
    folders: Mapping[str, Path], classes: RunClasses, *, needs_all_classes: bool = True
) -> list[list[int]]:
    """For each set, the label in the run of each of its labels.

    Raises ShardError when images have another shape or are of classes that the run has not, when no set has images of
    a class (unless other sets may have them), and when a shard is missing or has another size than its manifest states.
    """
    labels, existing = [], set()
    for name, folder in folders.items():
        manifest = read_given(name, folder)
        check_sizes(folder, manifest, given_fix(folder))
        _check_fit(name, manifest, classes.images)
        in_run = _labels_of(name, manifest, classes)
        existing |= {in_run[entry["class"]] for entry in manifest["shards"]}
        labels.append(in_run)
    missing = [_named(i, classes) for i in range(len(classes.labels)) if i not in existing]
    if missing and needs_all_classes:
        raise ShardError(
            f"{KEY}: no set has images of {listed(missing)}; add one that has, or name the other classes alone under "
            "`classes`"
        )
    return labels


def _check_fit(name: str, manifest: Mapping[str, Any], images: ImageConfig) -> None:
    shape = tuple(manifest["shape"])
    num_classes = manifest["identity"].get("images", {}).get("num_classes", images.num_classes)
    if shape != images.shape:
        raise ShardError(
            f"{KEY}: {name} holds images of (C, H, W) = {shape}, the `images` section says {images.shape}; name sets "
            "of that shape"
        )
    if num_classes != images.num_classes:
        raise ShardError(
            f"{KEY}: {name} is of a teacher of {num_classes} classes, images.num_classes={images.num_classes}; its "
            "labels mean other classes, name sets of teachers of the same classes"
        )


def _labels_of(name: str, manifest: Mapping[str, Any], classes: RunClasses) -> list[int]:
    """The label in the run of each label of a set; -1 for a class of which the set has no images."""
    teacher_labels, titles = manifest["classes"], manifest["class_titles"]
    position = {label: i for i, label in enumerate(classes.labels)}
    used = {entry["class"] for entry in manifest["shards"]}
    unknown = [f"{teacher_labels[i]} ({titles[i]})" for i in sorted(used) if teacher_labels[i] not in position]
    if unknown:
        raise ShardError(
            f"{KEY}: {name} has images of classes that the run has not: {listed(unknown)}; add them to `classes`, or "
            "name another set"
        )
    for i in sorted(used):
        label, title = teacher_labels[i], classes.titles[position[teacher_labels[i]]]
        if str(label) not in (title, titles[i]) and title != titles[i]:
            raise ShardError(
                f"{KEY}: {name} calls class {label} {titles[i]!r}, the run {title!r}; are the classes of its teacher "
                "in another order? Name sets with the same classes, or correct data.class_names"
            )
    return [position.get(label, -1) for label in teacher_labels]


def _named(label: int, classes: RunClasses) -> str:
    return f"{classes.labels[label]} ({classes.titles[label]})"
