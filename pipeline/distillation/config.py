"""The `distill` and `teacher_training` sections of a configuration."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.views import AugmentConfig
from pipeline.runtime.acceleration import Compile, Precision
from pipeline.runtime.config import ConfigError
from pipeline.runtime.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a classifier is trained: `steps` updates in all. Progress is saved every `save_every_s` seconds.

    `momentum` is SGD's, 0.9 unless it is given. Images that take less than `memory_gib`, by default a share of what
    the device has free, are decoded once and kept there; more are read again and again.
    """

    steps: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float | None = None
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    compile: Compile = "auto"
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
            raise ConfigError(f"momentum: {self.momentum} is SGD's, optimizer: {self.optimizer} has none; leave it out")
        for name in ("momentum", "warmup_fraction", "label_smoothing"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in [0, 1)")
        if self.memory_gib is not None and self.memory_gib < 0:
            raise ConfigError(f"memory_gib: {self.memory_gib} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """Training on a teacher's logits at `temperature`, plus `label_weight` times cross-entropy on the label."""

    temperature: float = 4.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"temperature: {self.temperature} must be positive")
        if self.label_weight < 0:
            raise ConfigError(f"label_weight: {self.label_weight} must be at least 0")
