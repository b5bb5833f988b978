"""The identity of each output is what it depends on. An output with another identity is not reused or overwritten."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.given_sets import given_identity
from pipeline.data.image_sets import source_identity
from pipeline.evaluation.evaluate import check_evaluation
from pipeline.evaluation.scores import Scorers
from pipeline.models.checkpoint import network_identity, read_description, weights_identity
from pipeline.models.classifier import Classifier
from pipeline.models.config import ImageConfig
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError, to_plain
from pipeline.runtime.files import read_json
from pipeline.runtime.fingerprint import fingerprint, require_same_identity
from pipeline.runtime.form import check_form
from pipeline.synthesis.config import SynthesisConfig

# Settings that change how a run is logged, saved and executed, but not its outputs.
NOT_IDENTITY = ("log_every", "save_every_s", "memory_gib", "cuda_graphs")
# Raised when the same configuration makes other outputs than before, so that old and new ones are not mixed. Version 8
# has `classes`; without it, images and weights are those of version 6.
METHOD_VERSION = 8
# As METHOD_VERSION, for students that start from their teacher. Version 2 follows the channels.
INHERITANCE_VERSION = 2
# As METHOD_VERSION, for students that learn the teacher's maps.
FEATURES_VERSION = 1
# Raised when evaluations hold more than before, so that they are made again. Version 2 has calibration bins.
EVALUATION_VERSION = 2


def without_execution(value: Any) -> Any:
    """Plain data without the settings that do not change an output."""
    return without_keys(value, NOT_IDENTITY)


def without_keys(value: Any, keys: Collection[str]) -> Any:
    """Plain data without these keys of its mappings, at any depth."""
    if isinstance(value, Mapping):
        return {k: without_keys(v, keys) for k, v in value.items() if k not in keys}
    return [without_keys(v, keys) for v in value] if isinstance(value, list) else value


def _identity(**parts: Any) -> dict[str, Any]:
    """`parts` as plain data, without the settings that do not change an output."""
    stripped: dict[str, Any] = without_execution(to_plain({"method_version": METHOD_VERSION, **parts}))
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


def synthesis_identity(config: RunConfig, round_index: int, synthesis: SynthesisConfig | None = None) -> dict[str, Any]:
    """What the images of a round depend on, including the recipe of the student that takes part in it, if one does.

    `synthesis` is a step of the set's growth, one of `config.synthesis.growth`, by default the last.
    """
    plain = to_plain(synthesis or config.synthesis)
    if not plain["grown_from"]:
        del plain["grown_from"]  # as before there was such a key
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        classes=config.class_labels,
        synthesis=plain,
        teacher=_frozen_teacher(config),
        verifier=weights_identity(config.verifier, "verifier.weights") if config.verifier else None,
        ensemble=[weights_identity(model, f"ensemble.{i}.weights") for i, model in enumerate(config.ensemble)],
        competitor=_student_recipe(config) if config.is_adaptive(round_index) else None,
    )


def module_images_identity(
    synthesis: SynthesisConfig, images: ImageConfig, seed: int, scorers: Scorers, ensemble: Iterable[Classifier]
) -> dict[str, Any]:
    """What images depend on that are made without the configuration of a run."""
    return _identity(
        seed=seed,
        images=images,
        synthesis=synthesis,
        teacher=network_identity(scorers.teacher),
        verifier=network_identity(scorers.verifier) if scorers.verifier else None,
        ensemble=[network_identity(network) for network in ensemble],
    )


def student_identity(config: RunConfig, round_index: int, synthesis: SynthesisConfig | None = None) -> dict[str, Any]:
    """What the student of a round depends on: the images up to that round, the teacher, the recipe.

    Sets of `distill.shards` are read for it. For `synthesis`, see `synthesis_identity`.
    """
    folders = {name: config.given_folder(name) for name in config.distill.shards}
    images = given_identity(folders) if folders else fingerprint(synthesis_identity(config, round_index, synthesis))
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        classes=config.class_labels,
        **_student_recipe(config),
        teacher=_frozen_teacher(config),
        shards=images,
    )


def _student_recipe(config: RunConfig) -> dict[str, Any]:
    distill = to_plain(config.distill)
    del distill["shards"]  # their content counts, not their names
    if distill["feature_weight"]:
        distill["features_version"] = FEATURES_VERSION
    else:
        del distill["feature_weight"]  # as before there was such a key
    start = {"inheritance_version": INHERITANCE_VERSION} if config.distill.init == "teacher" else {}
    return {"student": weights_identity(config.student, "student.weights"), "distill": distill, **start}


def evaluation_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What an evaluation depends on; reads the test images."""
    data = source_identity(config.data, "test", config.images, is_subset=config.class_labels is not None)
    return {**_evaluation_recipe(config, round_index), "data": data}


def _evaluation_recipe(config: RunConfig, round_index: int) -> dict[str, Any]:
    """The identity of an evaluation without the content of its test images."""
    return _identity(
        evaluation_version=EVALUATION_VERSION,
        images=config.images,
        classes=config.class_labels,
        class_titles=config.class_titles,
        student=fingerprint(student_identity(config, round_index)),
        teacher=_frozen_teacher(config),
        data={"source": config.data.test},
    )


def _frozen_teacher(config: RunConfig) -> dict[str, Any]:
    if config.teacher.weights is None:
        require_trained_teacher(config)
    return weights_identity(config.teacher_model, "teacher.weights")


def require_trained_teacher(config: RunConfig) -> None:
    """Raise ValueError when the run has not trained its teacher, ConfigError when it was trained by another recipe.

    The content of the training images is compared by the teacher stage alone: the other stages need no such images.
    """
    path = config.trained_teacher_path
    if not path.exists():
        raise ValueError(f"there is no teacher yet ({path}); run the stage `teacher` first")
    require_same_identity(str(path), _without_content(read_description(path)["identity"]), _teacher_recipe(config))


def _without_content(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the hash of its real images, as those of the recipes are."""
    data = identity.get("data")
    return {**identity, "data": {k: v for k, v in data.items() if k != "hash"} if isinstance(data, dict) else data}


def is_finished(network_path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a trained network exists; raises ConfigError when it has another identity."""
    if not network_path.exists():
        return False
    require_same_identity(str(network_path), read_description(network_path)["identity"], identity)
    return True


def is_student_finished(config: RunConfig, round_index: int) -> bool:
    """Whether the student of a round exists; raises ConfigError when it is one of other images or another recipe."""
    path = config.student_path(round_index)
    for smaller in config.synthesis.growth[:-1] if path.exists() and not config.distill.shards else ():
        if read_description(path)["fingerprint"] == fingerprint(student_identity(config, round_index, smaller)):
            raise ConfigError(
                f"{path} has learned from the {smaller.num_images} images that the set had before it grew to "
                f"synthesis.num_images={config.synthesis.num_images}; nothing was changed. Move this student away or "
                "remove it, and run the same command again"
            )
    return is_finished(path, student_identity(config, round_index))


def require_student(config: RunConfig, round_index: int) -> None:
    """Raise ValueError when a round has no student, ConfigError when its student has another identity."""
    if not is_student_finished(config, round_index):
        path = config.student_path(round_index)
        raise ValueError(f"there is no student of round {round_index} ({path}); run the stage `distill` first")


def existing_evaluation(config: RunConfig, round_index: int) -> dict[str, Any] | None:
    """The evaluation of the student of a round; None if there is none, or only one of another student or other images.

    The content of the test images is not read, so it is not compared. Raises ValueError when the file is damaged.
    """
    path = config.evaluation_path(round_index)
    if not path.exists():
        return None
    existing = read_json(path, partial(check_form, form={"identity": {"data": {"source": str}}}))["identity"]
    is_current = fingerprint(_without_content(existing)) == fingerprint(_evaluation_recipe(config, round_index))
    return read_json(path, check_evaluation) if is_current else None
