"""`Session`: what the stages of one process share, so that rounds neither load nor compile anything twice."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property

import torch

from pipeline.data.image_sets import ArrayImages, ImageSet, load_images
from pipeline.data.loader import cache_limit_bytes, num_bytes, preload
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import ShardError, check_sizes, find_damage, read_manifest
from pipeline.data.views import scaled_size
from pipeline.distillation.task import Task, build_distillation_loss
from pipeline.evaluation.scores import Scorers
from pipeline.identity import require_student, synthesis_identity
from pipeline.models.checkpoint import read_description, weights_identity
from pipeline.models.classifier import Classifier, build_classifier, check_fit, load_frozen
from pipeline.models.config import ModelConfig
from pipeline.models.inheritance import inherit_weights
from pipeline.models.sources import is_published_name
from pipeline.models.weights import load_weights
from pipeline.run import RunConfig, resolve
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import require_same_identity
from pipeline.runtime.hardware import keep_freed_memory
from pipeline.runtime.seeds import derive_seed
from pipeline.synthesis.objective import Networks, Objective, open_objective
from pipeline.synthesis.statistics import batch_norm_layers


class Session:
    """The networks, compiled steps and images of one run in one process; each is made when it is first needed.

    `command` is the command line that repeats the run; empty if the run was started by a program.
    """

    def __init__(self, config: RunConfig, context: DistributedContext, resources: ExitStack, command: str = "") -> None:
        self.config, self.context, self.command = config, context, command
        self._resources, self._is_student_used = resources, False
        self._shards, self._num_pooled, self._num_checked = ShardSet([]), 0, 0
        self._cached: ArrayImages | None = None
        # Measured now, since the process keeps the memory that synthesis frees.
        self._cache_limit_bytes = cache_limit_bytes(config.distill.memory_gib, context.device, context.local_size)

    @cached_property
    def teacher(self) -> Classifier:
        """The frozen teacher."""
        return self._load(self.config.teacher_model)

    @cached_property
    def scorers(self) -> Scorers:
        """The teacher, and the frozen verifier if the run has one."""
        config = self.config
        verifier = self._load(config.verifier) if config.verifier else None
        return Scorers(teacher=self.teacher, verifier=verifier)

    def objective(self, round_index: int) -> Objective:
        """The objective of the images of a round, with the student of the previous round if it takes part.

        Raises ValueError when the teacher cannot be inverted at the size of a phase, or when that student is missing.
        """
        if not self.config.is_adaptive(round_index):
            return self.plain_objective
        require_student(self.config, round_index - 1)
        student = self.adaptive_objective.networks.student
        assert student is not None
        self._load_previous_student(round_index, student)
        return self.adaptive_objective

    @cached_property
    def plain_objective(self) -> Objective:
        """The objective without a student: that of round 0, and of all rounds without the competition term."""
        return self._open_objective(student=None)

    @cached_property
    def adaptive_objective(self) -> Objective:
        """The objective with a student, which has no trained weights until `objective` loads them."""
        return self._open_objective(student=build_student(self.config, self.teacher))

    def student(self, round_index: int) -> Classifier:
        """The student at the start of a round: untrained, or that of the previous round; one module for all rounds."""
        if round_index:
            self._load_previous_student(round_index, self._student)
        elif self._is_student_used:
            self._student.network.load_state_dict(self._build_student().network.state_dict())
        self._is_student_used = True
        return self._student

    @cached_property
    def distillation(self) -> Task:
        """The task of `student`."""
        loss_function = build_distillation_loss(self.teacher, self.config.distill)
        return Task(self._student, loss_function, self.config.distill, self.config.seed, "distill")

    def require_complete_rounds(self, last_round: int) -> None:
        """Raise ConfigError when a round up to `last_round` has another identity, ShardError when it is not complete.

        Shards are checked by their size, once in a session; `pool` checks their content.
        """
        for r in range(self._num_checked, last_round + 1):
            folder = self.config.round_folder(r)
            manifest = read_manifest(folder)
            require_same_identity(str(folder), manifest["identity"], synthesis_identity(self.config, r))
            check_sizes(folder, manifest)
            self._num_checked = r + 1

    def pool(self, last_round: int) -> ImageSet:
        """The images of all rounds up to `last_round`, preloaded if they fit; a session reads each round once.

        Raises ShardError when a shard is damaged.
        """
        if last_round + 1 < self._num_pooled:
            self._shards, self._num_pooled, self._cached = ShardSet([]), 0, None
        folders = [self.config.round_folder(r) for r in range(self._num_pooled, last_round + 1)]
        for folder in folders:
            if problems := find_damage(folder):
                raise ShardError(f"{'; '.join(problems)}; remove {folder} and run `make synthesize` again")
        for folder in folders:
            self._shards.add(folder)
        self._num_pooled = last_round + 1
        if num_bytes(self._shards) > self._cache_limit_bytes:
            self._cached = None
            return self._shards
        new_shards = self._shards if self._cached is None else ShardSet(folders)
        if len(new_shards):
            images = preload(new_shards, self.context.device)
            self._cached = images if self._cached is None else _concatenated(self._cached, images)
        assert self._cached is not None and len(self._cached.labels) == len(self._shards)
        return self._cached

    @cached_property
    def _student(self) -> Classifier:
        return self._build_student().to(self.context.device)

    def _build_student(self) -> Classifier:
        return build_student(self.config, self.teacher)

    def _load_previous_student(self, round_index: int, student: Classifier) -> None:
        load_weights(student.network, self.config.student_path(round_index - 1), self.config.student.source)

    def _load(self, model: ModelConfig) -> Classifier:
        """A frozen network that knows all classes, restricted to those of the run."""
        return load_frozen(model, self.config.images, self.context.device, self.config.class_labels)

    def _open_objective(self, student: Classifier | None) -> Objective:
        config = self.config
        # Of all classes: an image of one is also none of the classes outside of the run. The teacher is a copy of its
        # own, since its hooks stay as long as the session.
        teacher, *ensemble = (
            load_frozen(model, config.images, self.context.device) for model in (config.teacher_model, *config.ensemble)
        )
        batch_norm_layers(teacher.network)
        inversion = config.synthesis.inversion
        for height, width in inversion.view_sizes(config.images.size):
            for classifier, model in zip((teacher, *ensemble), (config.teacher, *config.ensemble), strict=True):
                check_fit(classifier, model, replace(config.images, height=height, width=width))
        networks = Networks(
            teacher=teacher,
            student=None if student is None else student.freeze().to(self.context.device),
            ensemble=ensemble,
            classes=self.teacher.classes,
        )
        return self._resources.enter_context(open_objective(networks, inversion, config.images.size))


def _concatenated(first: ArrayImages, second: ArrayImages) -> ArrayImages:
    return ArrayImages(torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels]))


@contextmanager
def open_session(config: RunConfig, context: DistributedContext, command: str = "") -> Iterator[Session]:
    """A session of `config`, resolved for this machine; the hooks on its networks are removed when the block ends."""
    keep_freed_memory(context.local_size)
    with ExitStack() as resources:
        yield Session(resolve(config, context.device), context, resources, command)


def check_inputs(config: RunConfig, num_processes: int) -> None:
    """Raise ValueError for what would stop the run only after hours.

    That is `distill.batch_size` for this number of processes, the test images, and every network.
    """
    config.distill.require_even_shares(num_processes)
    load_images(config.data, "test", config.images, config.class_labels)
    check_networks(config, download=True)


def check_networks(config: RunConfig, *, download: bool) -> None:
    """Build every network of the run; raises ValueError for one that is not available or does not fit the images.

    Networks with published weights get random ones instead unless `download` is true.
    """
    networks, models = {}, {"teacher": config.teacher, "student": config.student}
    view_size = scaled_size(config.distill.augment.view_scale, config.images.size)
    if config.verifier is not None:
        models["verifier"] = config.verifier
    models |= {f"ensemble.{i}": model for i, model in enumerate(config.ensemble)}
    for key, model in models.items():
        weights_identity(model, f"{key}.weights")
        images = config.student_images if key == "student" else config.images
        is_stripped = is_published_name(model) and not download
        try:
            classifier = build_classifier(replace(model, weights=None) if is_stripped else model, images)
            if key in ("teacher", "student"):
                check_fit(classifier, model, replace(images, height=view_size[0], width=view_size[1]))
                networks[key] = classifier.network
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if config.distill.init == "teacher" and config.student.weights is None:
        labels = config.class_labels
        inherit_weights(networks["student"], networks["teacher"], None if labels is None else torch.tensor(labels))


def build_student(config: RunConfig, teacher: Classifier) -> Classifier:
    """A student before its training; the teacher's normalization applies if it has no other."""
    student = build_classifier(
        config.student,
        config.student_images,
        seed=derive_seed(config.seed, "student/weights"),
        default_normalization=teacher.normalization,
    )
    if config.distill.init == "teacher" and config.student.weights is None:
        inherit_weights(student.network, teacher.network, teacher.classes)
    return student


def load_student(config: RunConfig, round_index: int) -> Classifier:
    """The finished student of a round, with the normalization it was trained with."""
    path = config.student_path(round_index)
    description = read_description(path)
    mean, std = (tuple(description[name]) for name in ("mean", "std"))
    return build_classifier(replace(config.student, weights=str(path), mean=mean, std=std), config.student_images)


def last_student(config: RunConfig) -> int:
    """The last round with a student; the last round of all if there is none yet."""
    rounds = [r for r in range(config.synthesis.rounds) if config.student_path(r).exists()]
    return rounds[-1] if rounds else config.synthesis.rounds - 1
