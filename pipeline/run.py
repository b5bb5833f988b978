"""`RunConfig`: the configuration of a run, and the paths of its outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import yaml

from pipeline.data.class_names import ClassNames, choose_classes
from pipeline.data.codec import PILLOW_MODES
from pipeline.data.image_sets import DataConfig
from pipeline.data.manifest import MAX_CLASSES
from pipeline.data.mirrors import warn_of_mirrors
from pipeline.data.remote import folder_of_given
from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.evaluation.evaluate import EvaluationConfig
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.runtime.config import ConfigError, parse, to_plain
from pipeline.runtime.config_files import load_yaml
from pipeline.runtime.object_store import check_store_address
from pipeline.runtime.ranges import even_ranges
from pipeline.runtime.sinks import check_sink_names
from pipeline.synthesis.config import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: invert `teacher` into synthetic images, distill them into `student`, evaluate it on `data.test`.

    Attributes:
        name: Name of the run's folders, `SHARDS_DIR/NAME` and `CHECKPOINTS_DIR/NAME`.
        images: Shape of the images that every network of the run reads, and the number of classes of the teacher.
        teacher: The network that is inverted and that the student learns from. Without `weights`, it is first trained
            on `data.train` as `teacher_training` says.
        student: The network that is trained on the synthetic images. It starts from its `weights`, else as
            `distill.init` says; without `mean` and `std`, it takes the teacher's.
        data: Real images: `test` to evaluate on, `train` to train a teacher.
        classes: The classes that are synthesized, distilled and evaluated, at least two: labels, or names in the file
            of `data.class_names`. The student has one output for each, and learns the teacher's logits of these. null:
            all classes.
        synthesis: How many images are synthesized, and how; not used if `distill.shards` names the images.
        distill: How the student is trained.
        teacher_training: How a teacher without `weights` is trained; null for a teacher with `weights`.
        verifier: An independent network that scores the stored images and takes no part in making them; needs
            `weights`. null: only the teacher scores them.
        ensemble: Further networks that the `classification` term averages over, beside the teacher; each needs
            `weights`.
        evaluation: How the student is scored beside its teacher.
        seed: Seed from which all random numbers of the run are derived.
        sinks: Where metrics and pictures go beside the files of the run: `tensorboard`, or a class of your own as
            `python:package.module:Class` or `python:path/to/file.py:Class` (docs/live.md).
        shards_dir: Folder of the synthetic images of all runs.
        checkpoints_dir: Folder of the networks, evaluations, reports and metrics of all runs.
        object_store: An address of fsspec, such as `s3://BUCKET/PREFIX`, at which copies of images, networks and states
            of training are kept, so that the run continues on any machine (docs/scaling.md). null: in no other place.
    """

    name: str
    images: ImageConfig
    teacher: ModelConfig
    student: ModelConfig
    data: DataConfig
    synthesis: SynthesisConfig
    distill: DistillConfig
    classes: tuple[int | str, ...] | None = None
    teacher_training: TrainingConfig | None = None
    verifier: ModelConfig | None = None
    ensemble: tuple[ModelConfig, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    sinks: tuple[str, ...] = ()
    shards_dir: str = "shards"
    checkpoints_dir: str = "checkpoints"
    object_store: str | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name: {self.name!r} must be usable as a folder name")
        if self.images.channels not in PILLOW_MODES:
            raise ConfigError(f"images.channels: {self.images.channels} cannot be stored as an image file; use 1 or 3")
        check_sink_names(self.sinks)
        check_store_address(self.object_store)
        self._check_teacher()
        if not self.distill.shards:
            self._check_synthesis()
        labels = self.class_labels  # raises ConfigError for classes that do not exist
        if labels is None and self.images.num_classes > MAX_CLASSES:
            raise ConfigError(
                f"images.num_classes: {self.images.num_classes} classes are more than the {MAX_CLASSES} of a set of "
                "images; name fewer of them under `classes`"
            )

    def _check_teacher(self) -> None:
        if self.teacher.weights is None and self.teacher_training is None:
            raise ConfigError("teacher.weights: none, and no teacher_training section to train it; give one of them")
        if self.teacher.weights is not None and self.teacher_training is not None:
            raise ConfigError(
                f"teacher.weights: {self.teacher.weights!r} and teacher_training are both given; drop one: to use the "
                "weights, set teacher_training: null"
            )
        if self.teacher_training is not None and self.data.train is None:
            raise ConfigError("data.train: missing, teacher_training needs real images to train on")
        if self.verifier is not None and self.verifier.weights is None:
            raise ConfigError("verifier.weights: missing; the scores of an untrained verifier mean nothing")
        for i, model in enumerate(self.ensemble):
            if model.weights is None:
                raise ConfigError(f"ensemble.{i}.weights: missing; an untrained network adds nothing")

    def _check_synthesis(self) -> None:
        if self.synthesis.inversion.terms.competition and self.synthesis.rounds == 1:
            raise ConfigError(
                "synthesis.inversion.terms.competition: needs synthesis.rounds of at least 2, since it compares the "
                "teacher with the student of the previous round (or set it to 0)"
            )
        if self.distill.steps < self.synthesis.rounds:
            raise ConfigError(
                f"distill.steps: {self.distill.steps} is less than one for each of synthesis.rounds="
                f"{self.synthesis.rounds}; raise it or lower synthesis.rounds"
            )
        round_size = self.synthesis.num_images // self.synthesis.rounds
        if self.distill.batch_size > round_size:
            raise ConfigError(
                f"distill.batch_size: {self.distill.batch_size} is larger than the set of one round, {round_size} "
                "images; lower it or raise synthesis.num_images"
            )

    def is_adaptive(self, round_index: int) -> bool:
        """Whether the student of the previous round competes in the synthesis of a round (Adaptive DeepInversion)."""
        return round_index > 0 and self.synthesis.inversion.terms.competition > 0

    @cached_property
    def class_labels(self) -> tuple[int, ...] | None:
        """The teacher's labels of the classes of the run, in their order; None for all."""
        if self.classes is None:
            return None
        has_names = any(isinstance(one, str) for one in self.classes)
        return choose_classes(self.classes, self._class_names if has_names else None, self.images.num_classes)

    @cached_property
    def class_titles(self) -> tuple[str, ...]:
        """The title of each class of the run: that of the file of `data.class_names`, or the teacher's label."""
        labels = range(self.images.num_classes) if self.class_labels is None else self.class_labels
        return tuple(str(label) if self._class_names is None else self._class_names.titles[label] for label in labels)

    @property
    def student_images(self) -> ImageConfig:
        """The images as the student reads them: with as many classes as the run has."""
        return replace(self.images, num_classes=len(self.class_titles))

    @cached_property
    def _class_names(self) -> ClassNames | None:
        return self.data.read_class_names(self.images.num_classes)

    @property
    def checkpoints(self) -> Path:
        """The folder of the networks, evaluations, report and metrics."""
        return Path(self.checkpoints_dir) / self.name

    @property
    def shards(self) -> Path:
        """The folder of the synthetic images, with one folder for each round."""
        return Path(self.shards_dir) / self.name

    @property
    def trained_teacher_path(self) -> Path:
        """The file of a teacher that the run trains."""
        return self.checkpoints / "teacher.safetensors"

    @property
    def teacher_model(self) -> ModelConfig:
        """The teacher with weights: those that it names, or those that the teacher stage wrote."""
        return self.teacher if self.teacher.weights else replace(self.teacher, weights=str(self.trained_teacher_path))

    def round_folder(self, round_index: int) -> Path:
        """The folder of the synthetic images of one round."""
        return self.shards / str(round_index)

    def image_folders(self, last_round: int) -> list[Path]:
        """The folders of the images that the student of a round learns from: of its rounds, or of `distill.shards`."""
        if self.distill.shards:
            return [self.given_folder(name) for name in self.distill.shards]
        return [self.round_folder(r) for r in range(last_round + 1)]

    def given_folder(self, name: str) -> Path:
        """The folder of an item of `distill.shards`."""
        return folder_of_given(name, self.shards_dir)

    @property
    def num_rounds(self) -> int:
        """The rounds of the run; there is one if `distill.shards` names the images."""
        return 1 if self.distill.shards else self.synthesis.rounds

    def distill_steps(self, round_index: int) -> range:
        """The steps of distillation of a round."""
        return even_ranges(self.distill.steps, self.num_rounds)[round_index]

    def student_path(self, round_index: int) -> Path:
        """The file of the student that is distilled on all rounds up to this one."""
        return self.checkpoints / f"student-{round_index}.safetensors"

    def evaluation_path(self, round_index: int) -> Path:
        """The file of the evaluation of that student; beside it is a CSV file."""
        return self.checkpoints / f"eval-{round_index}.json"

    @property
    def estimate_path(self) -> Path:
        """The file of the estimate of time, memory and disk."""
        return self.checkpoints / "estimate.json"

    def metrics_path(self, rank: int = 0) -> Path:
        """The file of one rank with a JSON line for each logging step."""
        return self.checkpoints / ("metrics.jsonl" if rank == 0 else f"metrics.{rank}.jsonl")


# Old dotted names, accepted with a warning until the next release.
RENAMED_KEYS = {
    "synthesis.inversion.shift_px": "synthesis.inversion.jitter_px",
    "synthesis.inversion.canvas": "synthesis.inversion.init_noise",
    "synthesis.inversion.canvas.deviation": "synthesis.inversion.init_noise.std",
    # No former key: a file in which only the section has its new name.
    "synthesis.inversion.init_noise.deviation": "synthesis.inversion.init_noise.std",
    "distill.augment.shift_px": "distill.augment.crop_padding_px",
    "teacher_training.augment.shift_px": "teacher_training.augment.crop_padding_px",
    "data.classes": "data.class_names",
}


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of `path`, merged over its bases, with overrides applied; raises ConfigError."""
    mapping = load_yaml(path, overrides, RENAMED_KEYS)
    mapping.setdefault("name", path.stem)
    for section in ("synthesis", "evaluation"):
        if isinstance(mapping.get(section), dict) and "classes" in mapping[section]:
            raise ConfigError(f"{section}.classes is now `classes`, for images, student and evaluation; move it there")
    config = parse(RunConfig, mapping)
    training = config.teacher_training
    flips = {
        "synthesis.inversion.flip": config.synthesis.inversion.flip,
        "distill.augment.flip": config.distill.augment.flip,
        "teacher_training.augment.flip": training is not None and training.augment.flip,
    }
    warn_of_mirrors(config.data.test, flips)
    return config


def resolved_yaml(config: RunConfig) -> str:
    """The complete configuration with every default, as YAML that can be run."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)
