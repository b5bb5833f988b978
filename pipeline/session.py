"""`Session`: what the stages of one process share, so that rounds neither load nor compile anything twice."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property

import torch

from pipeline.copies import open_object_store
from pipeline.data.image_sets import load_images
from pipeline.data.loader import check_images
from pipeline.distillation.feature_matching import matched_stages
from pipeline.distillation.task import Task, open_distillation
from pipeline.evaluation.scores import Scorers
from pipeline.identity import require_student
from pipeline.models.checkpoint import load_classifier, weights_identity
from pipeline.models.classifier import Classifier, build_classifier, check_fit, load_frozen
from pipeline.models.config import ModelConfig
from pipeline.models.inheritance import inherit_weights
from pipeline.models.sources import is_published_name
from pipeline.models.weights import load_weights
from pipeline.pool import Pool
from pipeline.resolve import resolve
from pipeline.run import RunConfig
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.hardware import keep_freed_memory
from pipeline.runtime.seeds import derive_seed
from pipeline.runtime.sinks import open_sinks
from pipeline.synthesis.objective import Networks, Objective, open_objective
from pipeline.synthesis.statistics import batch_norm_layers


class Session:
    """The networks, compiled steps and images of one run in one process; each is made when it is first needed.

    `command` is the command line that repeats the run; empty if the run was started by a program.
    """

    def __init__(self, config: RunConfig, context: DistributedContext, resources: ExitStack, command: str = "") -> None:
        self.config, self.context, self.command = config, context, command
        self.pool = Pool(config, context)
        self._resources, self._is_student_used = resources, False
        sink_names = config.sinks if context.is_main_process else ()
        self.object_store = open_object_store(config)
        self.sinks = resources.enter_context(open_sinks(sink_names, config.name, config.checkpoints, to_plain(config)))

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
        config, distill = self.config, self.config.distill
        # A copy of its own, since its hooks stay as long as the session.
        teacher = self._load(config.teacher_model) if distill.feature_weight else self.teacher
        views = distill.view_shape(config.images.shape, self.context.size)
        task = open_distillation(self._student, teacher, distill, views, config.seed)
        return self._resources.enter_context(task)

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


@contextmanager
def open_session(config: RunConfig, context: DistributedContext, command: str = "") -> Iterator[Session]:
    """A session of `config`, resolved for this machine; the hooks on its networks are removed when the block ends."""
    keep_freed_memory(context.local_size)
    with ExitStack() as resources:
        resolved = resolve(config, context.device)
        if command and resolved.synthesis.grown_from != config.synthesis.grown_from:
            command += f" synthesis.grown_from=[{','.join(map(str, resolved.synthesis.grown_from))}]"
        yield Session(resolved, context, resources, command)


def check_inputs(config: RunConfig, num_processes: int) -> None:
    """Raise ValueError for what would stop the run only after hours.

    That is `distill.batch_size` for this number of processes, the test images unless they are done with, and every
    network.
    """
    config.distill.require_even_shares(num_processes)
    images = load_images(config.data, "test", config.images, config.class_labels)
    if not config.evaluation_path(config.num_rounds - 1).exists():
        check_images(images)
    check_networks(config, num_processes, download=True)


def check_networks(config: RunConfig, num_processes: int, *, download: bool) -> None:
    """Build every network of the run; raises ValueError for one that is not available or does not fit the images.

    So many processes share a batch. Networks with published weights get random ones instead unless `download` is true.
    """
    built = {key: build_checked(config, key, download=download) for key in models_of(config)}
    if config.distill.feature_weight:
        views = config.distill.view_shape(config.images.shape, num_processes)
        matched_stages(built["student"], built["teacher"], views)
    if config.distill.init == "teacher" and config.student.weights is None:
        labels = None if config.class_labels is None else torch.tensor(config.class_labels)
        inherit_weights(built["student"].network, built["teacher"].network, config.images.shape, labels)


def models_of(config: RunConfig) -> dict[str, ModelConfig]:
    """The networks that the config names, by their key."""
    models = {"teacher": config.teacher, "student": config.student}
    if config.verifier is not None:
        models["verifier"] = config.verifier
    return models | {f"ensemble.{i}": model for i, model in enumerate(config.ensemble)}


def build_checked(config: RunConfig, key: str, *, download: bool) -> Classifier:
    """The network of `models_of` at `key`, if it fits the images; raises ValueError, naming the key, else."""
    model, images = models_of(config)[key], config.student_images if key == "student" else config.images
    weights_identity(model, f"{key}.weights")
    is_stripped = is_published_name(model) and not download
    _, _, height, width = config.distill.view_shape(config.images.shape)
    try:
        classifier = build_classifier(replace(model, weights=None) if is_stripped else model, images)
        if key in ("teacher", "student"):
            check_fit(classifier, model, replace(images, height=height, width=width))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return classifier


def build_student(config: RunConfig, teacher: Classifier) -> Classifier:
    """A student before its training; the teacher's normalization applies if it has no other."""
    student = build_classifier(
        config.student,
        config.student_images,
        seed=derive_seed(config.seed, "student/weights"),
        default_normalization=teacher.normalization,
    )
    if config.distill.init == "teacher" and config.student.weights is None:
        inherit_weights(student.network, teacher.network, config.images.shape, teacher.classes)
    student.class_titles = config.class_titles
    return student


def load_student(config: RunConfig, round_index: int) -> Classifier:
    """The finished student of a round, with the normalization it was trained with."""
    return load_classifier(config.student_path(round_index), config.student.source)


def student_round(config: RunConfig, round_index: int | None) -> int:
    """The round, by default the last one with a student; raises what `require_student` raises."""
    if round_index is None:
        rounds = [r for r in range(config.num_rounds) if config.student_path(r).exists()]
        round_index = rounds[-1] if rounds else config.num_rounds - 1
    require_student(config, round_index)
    return round_index
