"""`RunConfig`: all of one run, where its outputs lie, and what each output depends on."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from pipeline.acceleration import PIXELS_WORTH_COMPILING, resolved
from pipeline.codec import PILLOW_MODES
from pipeline.config import ConfigError, fingerprint, load_yaml, parse, refuse_other, to_plain
from pipeline.data import NOT_MIRRORABLE, DataConfig, load_images, source_identity
from pipeline.evaluate import EvaluationConfig
from pipeline.files import read_json, write_json, write_text
from pipeline.models import (
    Classifier,
    ImageConfig,
    ModelConfig,
    Normalisation,
    build_classifier,
    read_description,
    weights_identity,
)
from pipeline.plan import SynthesisConfig, even_ranges
from pipeline.shards import MANIFEST, read_manifest
from pipeline.train import DistillConfig, TrainingConfig
from pipeline.world import derive_seed

# Settings that change how a run is watched, saved and launched, not what it makes.
NOT_IDENTITY = ("log_every", "save_every_s", "memory_gib", "cuda_graphs")
# Class folders have four digits; more classes would sort out of order.
MAX_CLASSES = 10_000
# Raised when the same configuration makes other outputs than before, so that old and new ones are not mixed.
METHOD_VERSION = 6
Training = TypeVar("Training", bound=TrainingConfig)
IDENTITY_FILE, CONFIG_FILE = "identity.json", "config.yaml"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to do: invert `teacher` into synthetic images, distil `student` from them, evaluate it on `data.test`.

    A teacher without `weights` is first trained on `data.train` as `teacher_training` says. An independent
    `verifier` judges the stored images; the networks of the `ensemble` have to be sure of their classes as well as the
    teacher. `name`, by default the config file's, names the output folders.
    """

    name: str
    images: ImageConfig
    teacher: ModelConfig
    student: ModelConfig
    data: DataConfig
    synthesis: SynthesisConfig
    distill: DistillConfig
    teacher_training: TrainingConfig | None = None
    verifier: ModelConfig | None = None
    ensemble: tuple[ModelConfig, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    shards_dir: str = "shards"
    checkpoints_dir: str = "checkpoints"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name: {self.name!r} must be usable as a folder name")
        if self.images.channels not in PILLOW_MODES:
            raise ConfigError(f"images.channels: {self.images.channels} cannot be stored as an image file; use 1 or 3")
        if self.images.num_classes > MAX_CLASSES:
            raise ConfigError(
                f"images.num_classes: {self.images.num_classes} is more than the {MAX_CLASSES} of the layout"
            )
        self._check_teacher()
        self._check_synthesis()

    def _check_teacher(self) -> None:
        if self.teacher.weights is None and self.teacher_training is None:
            raise ConfigError("teacher.weights: none, and no teacher_training section to train it; give one of them")
        if self.teacher.weights is not None and self.teacher_training is not None:
            raise ConfigError(
                f"teacher.weights: {self.teacher.weights!r} and teacher_training are both given; drop one"
            )
        if self.teacher_training is not None and self.data.train is None:
            raise ConfigError("data.train: missing, teacher_training needs real images to train on")
        if self.verifier is not None and self.verifier.weights is None:
            raise ConfigError("verifier.weights: missing; an untrained verifier judges nothing")
        for i, model in enumerate(self.ensemble):
            if model.weights is None:
                raise ConfigError(f"ensemble[{i}].weights: missing; an untrained network is sure of nothing")

    def _check_synthesis(self) -> None:
        beyond = [c for c in self.synthesis.classes or () if not 0 <= c < self.images.num_classes]
        if beyond:
            raise ConfigError(f"synthesis.classes: {beyond} are not in 0..{self.images.num_classes - 1}")
        beyond = [c for c in self.evaluation.classes or () if not 0 <= c < self.images.num_classes]
        if beyond:
            raise ConfigError(f"evaluation.classes: {beyond} are not in 0..{self.images.num_classes - 1}")
        if self.synthesis.inversion.terms.competition and self.synthesis.rounds == 1:
            raise ConfigError(
                "synthesis.inversion.terms.competition: the rival is the student of the round before, so it needs "
                "synthesis.rounds of at least 2 (or set it to 0)"
            )
        if self.distill.steps < self.synthesis.rounds:
            raise ConfigError(
                f"distill.steps: {self.distill.steps} is less than one for each of synthesis.rounds="
                f"{self.synthesis.rounds}; raise it or lower synthesis.rounds"
            )
        in_a_round = self.synthesis.num_images // self.synthesis.rounds
        if self.distill.batch_size > in_a_round:
            raise ConfigError(
                f"distill.batch_size: {self.distill.batch_size} is larger than the set of one round, {in_a_round} "
                "images; lower it or raise synthesis.num_images"
            )

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's networks, evaluations, report and metrics."""
        return Path(self.checkpoints_dir) / self.name

    @property
    def shards(self) -> Path:
        """Folder of the run's synthetic images, one folder a round."""
        return Path(self.shards_dir) / self.name

    @property
    def trained_teacher_path(self) -> Path:
        """Where the teacher stage writes its network."""
        return self.checkpoints / "teacher.safetensors"

    @property
    def teacher_model(self) -> ModelConfig:
        """The teacher with weights: those it names, or those that the teacher stage made."""
        return self.teacher if self.teacher.weights else replace(self.teacher, weights=str(self.trained_teacher_path))

    def round_folder(self, round_index: int) -> Path:
        """Folder of the synthetic images of one round."""
        return self.shards / str(round_index)

    def distill_steps(self, round_index: int) -> range:
        """The steps of distillation that belong to a round."""
        return even_ranges(self.distill.steps, self.synthesis.rounds)[round_index]

    def student_path(self, round_index: int) -> Path:
        """The student distilled on all rounds up to this one."""
        return self.checkpoints / f"student-{round_index}.safetensors"

    def evaluation_path(self, round_index: int) -> Path:
        """The evaluation of that student; its CSV line lies beside it."""
        return self.checkpoints / f"eval-{round_index}.json"

    @property
    def estimate_path(self) -> Path:
        """What the run was predicted to take."""
        return self.checkpoints / "estimate.json"

    def metrics_path(self, rank: int = 0) -> Path:
        """One JSON line for each logging step of one worker."""
        return self.checkpoints / ("metrics.jsonl" if rank == 0 else f"metrics.{rank}.jsonl")


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of `path` with overrides applied; raises ConfigError."""
    mapping = load_yaml(path, overrides)
    mapping.setdefault("name", path.stem)
    config = parse(RunConfig, mapping)
    _warn_of_mirrors(config)
    return config


def _warn_of_mirrors(config: RunConfig) -> None:
    flips = {
        "synthesis.inversion.flip": config.synthesis.inversion.flip,
        "distill.augment.flip": config.distill.augment.flip,
        "teacher_training.augment.flip": bool(config.teacher_training and config.teacher_training.augment.flip),
    }
    for key, flip in flips.items():
        if flip and config.data.test in NOT_MIRRORABLE:
            warnings.warn(
                f"{key}: true mirrors images of {config.data.test}, which changes what they show", stacklevel=3
            )


def resolve(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration as it runs on `device`: what is `auto` in it is decided (see `acceleration.resolved`)."""
    pixels_of_image = config.images.height * config.images.width

    def trained(training: Training, key: str) -> Training:
        return resolved(training, device, training.steps * training.batch_size * pixels_of_image, key)

    asked = config.synthesis.inversion
    num_pixels = config.synthesis.num_images * asked.num_steps * pixels_of_image
    if asked.cuda_graphs:
        num_pixels = max(num_pixels, PIXELS_WORTH_COMPILING)  # they are made of compiled steps
    inversion = resolved(replace(asked, cuda_graphs=False), device, num_pixels, "synthesis.inversion")
    inversion = replace(inversion, cuda_graphs=asked.cuda_graphs and bool(inversion.compile))
    return replace(
        config,
        synthesis=replace(config.synthesis, inversion=inversion),
        distill=trained(config.distill, "distill"),
        teacher_training=config.teacher_training and trained(config.teacher_training, "teacher_training"),
    )


def _identity(**parts: Any) -> dict[str, Any]:
    """`parts` as plain data, without the settings that do not change an output."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: strip(v) for k, v in value.items() if k not in NOT_IDENTITY}
        return [strip(v) for v in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(to_plain({"method_version": METHOD_VERSION, **parts}))
    return stripped


def teacher_identity(config: RunConfig) -> dict[str, Any]:
    """What a trained teacher depends on."""
    assert config.data.train is not None
    return _identity(
        seed=config.seed,
        images=config.images,
        teacher=weights_identity(config.teacher, "teacher.weights"),
        training=config.teacher_training,
        data=source_identity(config.data, "train", config.images),
    )


def synthesis_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What the images of a round depend on; where the student before is the rival, that includes its recipe."""
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        synthesis=config.synthesis,
        teacher=_frozen_teacher(config),
        verifier=weights_identity(config.verifier, "verifier.weights") if config.verifier else None,
        ensemble=_ensemble_identity(config),
        rival=_student_recipe(config) if round_index and config.synthesis.inversion.terms.competition else None,
    )


def _ensemble_identity(config: RunConfig) -> list[dict[str, Any]]:
    return [weights_identity(model, f"ensemble[{i}].weights") for i, model in enumerate(config.ensemble)]


def student_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What the student of a round depends on: the images up to that round, the teacher, the recipe."""
    return _identity(
        seed=config.seed,
        round=round_index,
        images=config.images,
        **_student_recipe(config),
        teacher=_frozen_teacher(config),
        shards=fingerprint(synthesis_identity(config, round_index)),
    )


def _student_recipe(config: RunConfig) -> dict[str, Any]:
    return {"student": weights_identity(config.student, "student.weights"), "distill": config.distill}


def evaluation_identity(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What an evaluation depends on."""
    return _identity(
        images=config.images,
        classes=config.evaluation.classes,
        student=fingerprint(student_identity(config, round_index)),
        teacher=_frozen_teacher(config),
        data=source_identity(config.data, "test", config.images),
    )


def _frozen_teacher(config: RunConfig) -> dict[str, Any]:
    if config.teacher.weights is None and not config.trained_teacher_path.exists():
        raise ValueError(f"there is no teacher yet ({config.trained_teacher_path}); run `make teacher` first")
    return weights_identity(config.teacher_model, "teacher.weights")


def state_path(network_path: Path) -> Path:
    """Where the training of a network keeps its state until the network is finished."""
    return network_path.with_suffix(".state")


def is_finished(network_path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a trained network is there; raises ConfigError when it is of another identity."""
    if not network_path.exists():
        return False
    refuse_other(str(network_path), read_description(network_path)["identity"], identity)
    state_path(network_path).unlink(missing_ok=True)  # a kill can fall between writing the network and this
    return True


def require_student(config: RunConfig, round_index: int) -> None:
    """Raise ValueError when there is no student of a round, ConfigError when it is of another configuration."""
    path = config.student_path(round_index)
    if not is_finished(path, student_identity(config, round_index)):
        raise ValueError(f"there is no student of round {round_index} ({path}); run `make distill` first")


def check_inputs(config: RunConfig) -> None:
    """Raise ValueError for what would stop the run only after hours: the test images, the student, the verifier."""
    load_images(config.data, "test", config.images)
    neutral = ((0.0,) * config.images.channels, (1.0,) * config.images.channels)
    build_student(config, neutral)
    if config.verifier is not None:
        weights_identity(config.verifier, "verifier.weights")
    _ensemble_identity(config)


def build_student(config: RunConfig, normalisation: Normalisation) -> Classifier:
    """A student that has learnt nothing yet, unless its config names weights.

    `normalisation`, the teacher's, is used where the config and published weights give none.
    """
    seed = derive_seed(config.seed, "student/weights")
    return build_classifier(config.student, config.images, seed=seed, default_normalisation=normalisation)


def load_student(config: RunConfig, round_index: int) -> Classifier:
    """The finished student of a round, with the normalisation it was trained with."""
    path = config.student_path(round_index)
    description = read_description(path)
    mean, std = (tuple(description[name]) for name in ("mean", "std"))
    return build_classifier(replace(config.student, weights=str(path), mean=mean, std=std), config.images)


def last_student(config: RunConfig) -> int:
    """The last round with a student; the last round of all when there is none yet."""
    rounds = [r for r in range(config.synthesis.rounds) if config.student_path(r).exists()]
    return rounds[-1] if rounds else config.synthesis.rounds - 1


def check_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the keys that differ, when images in the folder are of another identity."""
    if (folder / MANIFEST).exists():
        refuse_other(str(folder), read_manifest(folder)["identity"], identity)
    elif any((folder / "parts").glob("*.tar")):
        path = folder / IDENTITY_FILE
        if not path.exists():
            raise ConfigError(f"{folder} holds parts but no {IDENTITY_FILE}, so nobody knows whose; remove it")
        refuse_other(str(folder), read_json(path), identity)


def claim_folder(folder: Path, identity: Mapping[str, Any], config: RunConfig) -> None:
    """Write the resolved configuration and the identity of the images that are about to come."""
    write_text(folder / CONFIG_FILE, resolved_yaml(config))
    write_json(folder / IDENTITY_FILE, to_plain(identity))


def resolved_yaml(config: RunConfig) -> str:
    """The complete configuration with every default, as YAML that can be run again."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)
