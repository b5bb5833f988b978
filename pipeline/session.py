"""What the stages of one process share, so that round follows round without loading or compiling anything twice."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch

from pipeline.data.image_sets import ArrayImages, ImageSet, load_images
from pipeline.data.loader import held_limit_bytes, hold_in_memory, num_bytes
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import ShardError, check_sizes, read_manifest, verify
from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.task import Task, distillation_objective
from pipeline.identity import require_student, synthesis_identity
from pipeline.models.checkpoint import read_description, weights_identity
from pipeline.models.classifier import Classifier, build_classifier, check_fit, load_frozen
from pipeline.models.config import Normalisation
from pipeline.models.weights import load_weights
from pipeline.run import RunConfig
from pipeline.runtime.acceleration import PIXELS_WORTH_COMPILING, resolved
from pipeline.runtime.distributed import World
from pipeline.runtime.fingerprint import refuse_other
from pipeline.runtime.hardware import keep_freed_memory
from pipeline.runtime.seeds import derive_seed
from pipeline.synthesis.objective import Objective, open_objective, phase_size
from pipeline.synthesis.statistics import batch_norm_layers

Training = TypeVar("Training", bound=TrainingConfig)


class Session:
    """The networks, compiled steps and images of one run on one worker; each is made when it is first asked for."""

    def __init__(self, config: RunConfig, world: World, resources: ExitStack) -> None:
        self.config, self.world = config, world
        self._resources, self._is_student_used = resources, False
        self._shards, self._num_pooled, self._num_checked = ShardSet([]), 0, 0
        self._held: ArrayImages | None = None
        # Taken now, since what synthesis frees stays with the process.
        self._held_limit_bytes = held_limit_bytes(config.distill.memory_gib, world.device, world.local_size)

    @cached_property
    def teacher(self) -> Classifier:
        """The frozen teacher."""
        return self._load_teacher()

    @cached_property
    def verifier(self) -> Classifier | None:
        """The frozen verifier, if the run has one."""
        config = self.config
        return load_frozen(config.verifier, config.images, self.world.device) if config.verifier else None

    def objective(self, round_index: int) -> Objective:
        """What the images of a round are optimised for; from round 1 on the student before can be the rival.

        Raises ValueError when the teacher cannot be inverted in every phase, or when there is no student before.
        """
        if not (round_index and self.config.synthesis.inversion.terms.competition):
            return self.objective_without_rival
        require_student(self.config, round_index - 1)
        rival = self.objective_with_rival.rival
        assert rival is not None
        self._load_student_before(round_index, rival)
        return self.objective_with_rival

    @cached_property
    def objective_without_rival(self) -> Objective:
        """What images are optimised for in round 0, or in all rounds where nothing competes."""
        return self._open_objective(rival=None)

    @cached_property
    def objective_with_rival(self) -> Objective:
        """What images are optimised for in later rounds; its rival has learnt nothing before `objective` loads it."""
        return self._open_objective(rival=build_student(self.config, self.teacher.normalisation))

    def student(self, round_index: int) -> Classifier:
        """The student as a round begins: untrained, or the one of the round before; one module for all rounds."""
        if round_index:
            self._load_student_before(round_index, self._student)
        elif self._is_student_used:
            self._student.network.load_state_dict(self._build_student().network.state_dict())
        self._is_student_used = True
        return self._student

    @cached_property
    def distillation(self) -> Task:
        """The task of `student`."""
        config = self.config
        return Task(
            self._student,
            distillation_objective(self.teacher, config.distill),
            config.distill,
            num_classes=config.images.num_classes,
            seed=config.seed,
            purpose="distill",
        )

    def check_shards(self, last_round: int) -> None:
        """Check, once in a session, that the rounds up to `last_round` are complete.

        Raises ConfigError when one is of another configuration, ShardError when a shard is missing or of another size.
        """
        for r in range(self._num_checked, last_round + 1):
            folder = self.config.round_folder(r)
            manifest = read_manifest(folder)
            refuse_other(str(folder), manifest["identity"], synthesis_identity(self.config, r))
            check_sizes(folder, manifest)
            self._num_checked = r + 1

    def pool(self, last_round: int) -> ImageSet:
        """The images of all rounds up to `last_round`, in memory if they fit; a session reads each round once.

        Raises ShardError when a shard is not as it was written.
        """
        if last_round + 1 < self._num_pooled:
            self._shards, self._num_pooled, self._held = ShardSet([]), 0, None
        added = [self.config.round_folder(r) for r in range(self._num_pooled, last_round + 1)]
        for folder in added:
            if problems := verify(folder):
                raise ShardError(f"{'; '.join(problems)}; remove {folder} and run `make synthesize` again")
            self._shards.add(folder)
        self._num_pooled = last_round + 1
        if num_bytes(self._shards) > self._held_limit_bytes:
            self._held = None
            return self._shards
        missing = ShardSet(added) if self._held is not None else self._shards
        if len(missing):
            decoded = hold_in_memory(missing, self.world.device)
            self._held = decoded if self._held is None else _joined(self._held, decoded)
        assert self._held is not None and len(self._held.labels) == len(self._shards)
        return self._held

    @cached_property
    def _student(self) -> Classifier:
        return self._build_student().to(self.world.device)

    def _build_student(self) -> Classifier:
        return build_student(self.config, self.teacher.normalisation)

    def _load_student_before(self, round_index: int, into: Classifier) -> None:
        load_weights(into.network, self.config.student_path(round_index - 1), self.config.student.source)

    def _load_teacher(self) -> Classifier:
        return load_frozen(self.config.teacher_model, self.config.images, self.world.device)

    def _open_objective(self, rival: Classifier | None) -> Objective:
        config, device = self.config, self.world.device
        teacher = self._load_teacher()  # one of its own: its hooks stay for as long as the session
        batch_norm_layers(teacher.network)
        ensemble = [load_frozen(model, config.images, device) for model in config.ensemble]
        for phase in config.synthesis.inversion.phases:
            height, width = phase_size(phase.scale, config.images.height, config.images.width)
            for classifier, model in zip((teacher, *ensemble), (config.teacher, *config.ensemble), strict=True):
                check_fit(classifier, model, replace(config.images, height=height, width=width))
        frozen = None if rival is None else rival.freeze().to(device)
        return self._resources.enter_context(open_objective(teacher, frozen, config.synthesis.inversion, ensemble))


def _joined(first: ArrayImages, second: ArrayImages) -> ArrayImages:
    return ArrayImages(torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels]))


@contextmanager
def open_session(config: RunConfig, world: World) -> Iterator[Session]:
    """A session of `config` as this machine runs it; its hooks are removed from networks when the block ends."""
    keep_freed_memory(world.local_size)
    with ExitStack() as resources:
        yield Session(resolve(config, world.device), world, resources)


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


def check_inputs(config: RunConfig) -> None:
    """Raise ValueError for what would stop the run only after hours: the test images, the student, the verifier."""
    load_images(config.data, "test", config.images)
    neutral = ((0.0,) * config.images.channels, (1.0,) * config.images.channels)
    build_student(config, neutral)
    if config.verifier is not None:
        weights_identity(config.verifier, "verifier.weights")
    for i, model in enumerate(config.ensemble):
        weights_identity(model, f"ensemble[{i}].weights")


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
