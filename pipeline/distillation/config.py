"""The `distill` and `teacher_training` sections of a configuration."""

import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipeline.data.remote import check_address, is_remote
from pipeline.data.views import AugmentConfig, scaled_size
from pipeline.runtime.acceleration import Compile, CudaGraphs, Precision, check_cuda_graphs
from pipeline.runtime.config import ConfigError
from pipeline.runtime.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a classifier is trained.

    Attributes:
        steps: Number of updates, at least 1.
        batch_size: Images per update, at least 2. In distillation all processes share them: a multiple of their number,
            at least 2 for each, and at most the images of one round.
        lr: Peak learning rate, positive.
        optimizer: `sgd` with Nesterov momentum; `adamw`; or `muon`, whose updates of matrices and filters are
            orthogonal and as large as AdamW's (Jordan et al., 2024; Liu et al., 2025, arXiv 2502.16982).
        momentum: Momentum of SGD, in [0, 1). null: 0.9; the others have their own.
        weight_decay: Weight decay, at least 0; biases and BatchNorm have none.
        schedule: Learning rate after the warm-up: `cosine` falls to 0, `constant` stays at `lr`.
        warmup_fraction: Fraction of the steps, in [0, 1), in which the learning rate rises linearly to `lr`.
        augment: Random views of the images.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
        precision: Arithmetic of the networks. `auto`: bfloat16 where the hardware multiplies it, else float32.
        compile: Whether the step is compiled (torch.compile). `auto`: where compiling works and saves time.
        cuda_graphs: Whether the kernels of a compiled step are launched as one CUDA graph. `auto`: on CUDA. It has not
            been tried with several processes.
        log_every: Steps between two log lines; losses are checked for NaN and infinity at the same steps.
        save_every_s: Least number of seconds between two saved states; a stopped training run resumes from the last.
        memory_gib: Memory for decoded images on the device, in GiB. Images that fit are decoded once; otherwise they
            are read from disk again in every epoch. null: 40 % of the free memory.
    """

    SECTION: ClassVar[str] = "teacher_training"

    steps: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    momentum: float | None = None
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    compile: Compile = "auto"
    cuda_graphs: CudaGraphs = False
    log_every: int = 20
    save_every_s: float = 60.0
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size: {self.batch_size} must be at least 2, BatchNorm needs a batch")
        if self.lr <= 0:
            raise ConfigError(f"lr: {self.lr} must be positive")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay: {self.weight_decay} must be at least 0")
        if self.momentum is not None and self.optimizer != "sgd":
            raise ConfigError(f"momentum: {self.momentum} is SGD's, not that of {self.optimizer}; leave it out")
        for name in ("momentum", "warmup_fraction", "label_smoothing"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in [0, 1)")
        check_cuda_graphs(self)
        if self.memory_gib is not None and self.memory_gib < 0:
            raise ConfigError(f"memory_gib: {self.memory_gib} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """How the student is trained on the teacher's outputs: `teacher_training`'s keys, and five more.

    The loss is T^2 KL(teacher || student) at temperature T (Hinton et al., 2015, arXiv 1503.02531), plus
    `label_weight` times the cross-entropy with the labels, plus `feature_weight` times the difference of the maps of
    both networks.

    Attributes:
        temperature: Temperature T of the softmax of both networks, positive.
        label_weight: Weight of the cross-entropy with the labels, at least 0.
        feature_weight: Weight of the difference of the student's maps from the teacher's, at least 0: for each
            resolution that both networks have, the squared error of the last map, as a share of the teacher's square;
            the mean over the resolutions. It teaches far more per image than the logits, if the student has the
            teacher's stages (Romero et al., 2015, arXiv 1412.6550). Channels that differ in number are combined
            linearly.
        init: Where a student without `weights` starts. `random`: from random weights. `teacher`: from weights of the
            teacher, for a student of the same architecture with fewer channels or layers. All layers that a channel
            passes keep the same ones, those that the next layers weigh most; through shortcuts that pad with zeros they
            cannot be followed (Torch-Pruning, arXiv 2301.12900).
        shards: Sets of images to learn from in place of images of the run: folders that hold a `manifest.json`, such
            as `shards/digits/0`, and http or https addresses of such folders, which are fetched once. The run then
            synthesizes nothing and has one round. []: the images of the run.
    """

    SECTION: ClassVar[str] = "distill"

    temperature: float = 4.0
    label_weight: float = 0.0
    feature_weight: float = 0.0
    init: Literal["random", "teacher"] = "random"
    shards: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"temperature: {self.temperature} must be positive")
        for name in ("label_weight", "feature_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 0")
        sets: set[str] = set()
        for name in self.shards:
            if is_remote(name):
                check_address(name)
            one = name.rstrip("/") if is_remote(name) else os.path.realpath(name)
            if not name or one in sets:
                raise ConfigError(f"shards: {name!r} is empty or named twice; remove it")
            sets.add(one)

    def view_shape(self, shape: tuple[int, int, int], num_processes: int = 1) -> tuple[int, int, int, int]:
        """(N, C, H, W) of the views that each process sees of a batch, of images (C, H, W)."""
        height, width = scaled_size(self.augment.view_scale, shape[1:])
        return self.batch_size // num_processes, shape[0], height, width

    def require_even_shares(self, num_processes: int) -> None:
        """Raise ConfigError unless so many processes can share a batch evenly, with at least two images for each."""
        if self.batch_size % num_processes or self.batch_size < 2 * num_processes:
            raise ConfigError(
                f"distill.batch_size: {self.batch_size} cannot be shared by {num_processes} processes; use a multiple "
                f"of {num_processes}, at least {2 * num_processes}, or another number of processes"
            )
