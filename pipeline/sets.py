"""The sets of synthetic images of a run: what exists of the set of a round, and what is made next.

A set grows when `synthesis.num_images` is raised. It then exists at one of the sizes of `synthesis.growth`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.growth import growth_folder, sizes_so_far
from pipeline.data.parts import PARTS, list_parts, part_fingerprint
from pipeline.data.shards import (
    CONFIG_FILE,
    GROWTH,
    IDENTITY_FILE,
    MANIFEST,
    MANIFEST_COPY,
    TEXTS,
    is_packed,
    read_manifest,
    write_manifest,
)
from pipeline.identity import is_student_finished, synthesis_identity
from pipeline.run import RunConfig, resolved_yaml
from pipeline.runtime.config import ConfigError, to_plain
from pipeline.runtime.files import TEMPORARY_SUFFIX, is_whole, read_json, write_json, write_sealed_text
from pipeline.runtime.fingerprint import FIX, fingerprint, require_same_identity
from pipeline.synthesis.config import SynthesisConfig


def next_set(config: RunConfig, round_index: int) -> tuple[SynthesisConfig, Path] | None:
    """The set that is to be made next, and the folder to make it in; None if the set of the round has all its images.

    Raises ConfigError when images in the folder have another identity.
    """
    folder, steps = config.round_folder(round_index), config.synthesis.growth
    if is_packed(folder):
        existing = _existing_set(config, round_index, read_manifest(folder)["identity"])
        steps, folder = steps[steps.index(existing) + 1 :], growth_folder(folder)
    if not steps:
        return None
    current = synthesis_identity(config, round_index, steps[0])
    if (existing_identity := stored_identity(folder, current)) is not None:
        _require_same(config, folder, existing_identity, current)
    return steps[0], folder


def stored_identity(folder: Path, current: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The identity of the images, or parts of them, in a folder; None if it holds none.

    Parts state its fingerprint. If that is not the one of the `current` identity, a file beside them tells what
    differs; raises ConfigError when that file is missing or damaged.
    """
    if is_packed(folder):
        identity: dict[str, Any] = read_manifest(folder)["identity"]
        return identity
    parts = list_parts(folder)
    if not parts:
        _require_no_other_files(folder)
        return None
    foreign = [path for path in parts if part_fingerprint(path) not in (fingerprint(current), None)]
    if not foreign:  # damaged ones are made again
        return current
    if not is_whole(folder / IDENTITY_FILE):
        raise ConfigError(
            f"{folder} holds parts of another configuration, and {IDENTITY_FILE}, which would tell what differs, is "
            f"missing or damaged; set another `name`, or remove {folder}"
        )
    stated = read_json(folder / IDENTITY_FILE)
    if fingerprint(stated) == fingerprint(current):
        raise ConfigError(f"{foreign[0]} is of another configuration than {IDENTITY_FILE} beside it states; remove it")
    return stated


def _require_no_other_files(folder: Path) -> None:
    """Raise ConfigError when a folder holds files, but none that says that a set is made there."""
    paths = [path for path in folder.glob("[!.]*") if path.suffix != TEMPORARY_SUFFIX]  # left by a killed process
    names = sorted(path.name for path in paths if path.name != PARTS)
    if names and not (folder / IDENTITY_FILE).exists():
        raise ConfigError(f"{folder} holds other files, such as {names[0]}; name another folder, or remove them")


def require_same_outputs(config: RunConfig, last_round: int) -> None:
    """Raise ConfigError for images and students of another identity, which would stop a run only after hours."""
    for r in range(last_round + 1):
        if not config.distill.shards:
            next_set(config, r)
        if config.student_path(r).exists():
            is_student_finished(config, r)


def require_complete_set(config: RunConfig, round_index: int, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError when the set of a round, of this `identity`, is another one or has yet to grow."""
    existing = _existing_set(config, round_index, identity)
    if existing != config.synthesis:
        raise ConfigError(
            f"{config.round_folder(round_index)} holds {existing.num_images} of "
            f"synthesis.num_images={config.synthesis.num_images} images; run the stage "
            "`synthesize`, which adds the others"
        )


def steps_of_set(config: RunConfig, round_index: int) -> tuple[SynthesisConfig, ...]:
    """The steps of growth that made the complete set of a round; ConfigError when it has another identity."""
    identity, steps = read_manifest(config.round_folder(round_index))["identity"], config.synthesis.growth
    return steps[: steps.index(_existing_set(config, round_index, identity)) + 1]


def restore_texts(config: RunConfig, round_index: int) -> list[Path]:
    """Write the files beside the shards of a complete set again; returns those that were damaged or missing."""
    folder = config.round_folder(round_index)
    manifest = read_manifest(folder)
    # A whole file can be that of another set, which the manifest tells of its copy and of the identity.
    expected = {MANIFEST: manifest, MANIFEST_COPY: manifest, IDENTITY_FILE: manifest["identity"]}
    paths = [folder / name for name in (MANIFEST, MANIFEST_COPY, *TEXTS)]
    damaged = [p for p in paths if not is_whole(p) or (p.name in expected and read_json(p) != expected[p.name])]
    if damaged:
        write_identity(folder, manifest["identity"], resolved_yaml(config))
        write_manifest(folder, manifest)
    return damaged


def write_identity(folder: Path, identity: Mapping[str, Any], config_yaml: str) -> None:
    """Write the identity, by which a folder is known as that of a set, and the configuration of its images."""
    write_json(folder / IDENTITY_FILE, to_plain(identity))
    write_sealed_text(folder / CONFIG_FILE, config_yaml)


def _existing_set(config: RunConfig, round_index: int, identity: Mapping[str, Any]) -> SynthesisConfig:
    """The step of `config.synthesis.growth` at which the set of a round is; ConfigError if it has another identity."""
    sizes, steps = sizes_so_far(identity), config.synthesis.growth
    step = next((step for step in steps if step.num_images == sizes[-1]), config.synthesis)
    current = synthesis_identity(config, round_index, step)
    _require_same(config, config.round_folder(round_index), identity, current)
    return step


def _require_same(config: RunConfig, folder: Path, existing: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    require_same_identity(str(folder), existing, current, _fix(config, folder, existing, current))


def _fix(config: RunConfig, folder: Path, existing: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """What to do about images of another identity; if they differ in their number alone, how a set grows."""
    *_, num_images = sizes_so_far(existing)
    if fingerprint(_without_sizes(existing)) != fingerprint(_without_sizes(current)):
        return FIX
    if folder.name == GROWTH or not is_packed(folder):
        return f"Finish these images with synthesis.num_images={num_images} and raise it then, or remove {folder}"
    if config.synthesis.num_images < num_images:
        return f"A set grows, but does not shrink: set synthesis.num_images={num_images} or more, or another `name`"
    if config.synthesis.rounds > 1:
        return "The sets of several rounds do not grow: make more images under another `name` (see distill.shards)"
    return FIX


def _without_sizes(identity: Mapping[str, Any]) -> dict[str, Any]:
    synthesis = {k: v for k, v in identity.get("synthesis", {}).items() if k not in ("num_images", "grown_from")}
    return {**identity, "synthesis": synthesis}
