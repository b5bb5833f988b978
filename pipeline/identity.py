"""The identity of each output is what it depends on. An output with another identity is not reused or overwritten."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.image_sets import source_identity
from pipeline.data.shards import is_packed, read_manifest
from pipeline.models.checkpoint import read_description, weights_identity
from pipeline.run import RunConfig, resolved_yaml
from pipeline.runtime.config import ConfigError, to_plain
from pipeline.runtime.files import read_json, write_json, write_text
from pipeline.runtime.fingerprint import fingerprint, require_same_identity

# Settings that change how a run is logged, saved and executed, but not its outputs.
NOT_IDENTITY = ("log_every", "save_every_s", "memory_gib", "cuda_graphs")
# Raised when the same configuration makes other outputs than before, so that old and new ones are not mixed. Version 8
# has `classes`; without it, images and weights are those of version 6.
METHOD_VERSION = 8
# Raised when evaluations hold more than before, so that they are made again. Version 2 has calibration bins.
EVALUATION_VERSION = 2
IDENTITY_FILE, CONFIG_FILE = "identity.json", "config.yaml"


def _identity(**parts: Any) -> dict[str, Any]:
    """`parts` as plain data, without the settings that do not change an output."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: strip(v) for k, v in value.items() if k not in NOT_IDENTITY}
        return [strip(v) for v in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(to_plain({"method_version": METHOD_VERSION, **parts}))
    return stripped


def teacher_identity(config: RunConfig) -> dict[str, Any]:
    """What a trained teacher depends on; reads, and may download, its training images."""
    return {**_teacher_recipe(config), "data": source_identity(config.data, "train", config.images)}


def _teacher_recipe(config: RunConfig) -> dict[str, Any]:
    """The identity of a trained teacher without the content of its training images."""
    return _identity(
        seed=config.seed,
        images=config.images,
        teacher=weights_identity(config.teacher, "teacher.weights"),
        training=config.teacher_training,
        data={"source": config.data.train},
    )


def synthesis_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What the images of a round depend on, including the recipe of the student that takes part in it, if one does."""
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        classes=config.class_labels,
        synthesis=config.synthesis,
        teacher=_frozen_teacher(config),
        verifier=weights_identity(config.verifier, "verifier.weights") if config.verifier else None,
        ensemble=[weights_identity(model, f"ensemble.{i}.weights") for i, model in enumerate(config.ensemble)],
        competitor=_student_recipe(config) if config.is_adaptive(round_index) else None,
    )


def student_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What the student of a round depends on: the images up to that round, the teacher, the recipe."""
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        classes=config.class_labels,
        **_student_recipe(config),
        teacher=_frozen_teacher(config),
        shards=fingerprint(synthesis_identity(config, round_index)),
    )


def _student_recipe(config: RunConfig) -> dict[str, Any]:
    return {"student": weights_identity(config.student, "student.weights"), "distill": config.distill}


def evaluation_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What an evaluation depends on."""
    return _identity(
        evaluation_version=EVALUATION_VERSION,
        images=config.images,
        classes=config.class_labels,
        class_titles=config.class_titles,
        student=fingerprint(student_identity(config, round_index)),
        teacher=_frozen_teacher(config),
        data=source_identity(config.data, "test", config.images, is_subset=config.class_labels is not None),
    )


def _frozen_teacher(config: RunConfig) -> dict[str, Any]:
    if config.teacher.weights is None:
        _require_trained_teacher(config)
    return weights_identity(config.teacher_model, "teacher.weights")


def _require_trained_teacher(config: RunConfig) -> None:
    """Raise ValueError when the run has not trained its teacher, ConfigError when it was trained by another recipe.

    The content of the training images is compared by the teacher stage alone: the other stages need no such images.
    """
    path = config.trained_teacher_path
    if not path.exists():
        raise ValueError(f"there is no teacher yet ({path}); run `make teacher` first")
    existing = read_description(path)["identity"]
    recipe = {**existing, "data": {"source": existing["data"]["source"]}}
    require_same_identity(str(path), recipe, _teacher_recipe(config))


def is_finished(network_path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a trained network exists; raises ConfigError when it has another identity."""
    if not network_path.exists():
        return False
    require_same_identity(str(network_path), read_description(network_path)["identity"], identity)
    return True


def require_student(config: RunConfig, round_index: int) -> None:
    """Raise ValueError when a round has no student, ConfigError when its student has another identity."""
    path = config.student_path(round_index)
    if not is_finished(path, student_identity(config, round_index)):
        raise ValueError(f"there is no student of round {round_index} ({path}); run `make distill` first")


def existing_evaluation(config: RunConfig, round_index: int) -> dict[str, Any] | None:
    """The evaluation of the student of a round; None if there is none, or only one of another student."""
    path = config.evaluation_path(round_index)
    evaluation = read_json(path) if path.exists() else None
    if evaluation is None or evaluation["identity"]["student"] != fingerprint(student_identity(config, round_index)):
        return None
    return evaluation


def require_same_images(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the keys that differ, when the images in the folder have another identity."""
    if is_packed(folder):
        require_same_identity(str(folder), read_manifest(folder)["identity"], identity)
    elif any((folder / "parts").glob("*.tar")):
        path = folder / IDENTITY_FILE
        if not path.exists():
            raise ConfigError(f"{folder} holds parts without {IDENTITY_FILE}, so their identity is unknown; remove it")
        require_same_identity(str(folder), read_json(path), identity)


def write_identity(folder: Path, identity: Mapping[str, Any], config: RunConfig) -> None:
    """Write the resolved configuration and the identity of the images that the folder will hold."""
    write_text(folder / CONFIG_FILE, resolved_yaml(config))
    write_json(folder / IDENTITY_FILE, to_plain(identity))
