"""`RunConfig`: all of one run, where its outputs lie, and what each output depends on."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from pipeline.data.codec import PILLOW_MODES
from pipeline.data.image_sets import NOT_MIRRORABLE, DataConfig
from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.evaluation.evaluate import EvaluationConfig
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.runtime.config import ConfigError, load_yaml, parse, to_plain
from pipeline.runtime.ranges import even_ranges
from pipeline.synthesis.config import SynthesisConfig

# Class folders have four digits; more classes would sort out of order.
MAX_CLASSES = 10_000


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


def resolved_yaml(config: RunConfig) -> str:
    """The complete configuration with every default, as YAML that can be run again."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)
