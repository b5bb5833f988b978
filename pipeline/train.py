"""Training of a classifier on images, for a teacher on labels and for a student on a teacher's logits; resumable."""

import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.codec import to_unit
from pipeline.config import ConfigError, refuse_other, to_plain
from pipeline.data import ImageSet, draw_batch, load_batches
from pipeline.files import atomic_file
from pipeline.losses import distillation_loss, label_loss
from pipeline.models import Classifier, Precision
from pipeline.recorder import OnStep
from pipeline.schedules import Schedule, learning_rates
from pipeline.views import AugmentConfig, augment
from pipeline.weights import load_tensors
from pipeline.world import World, compiled, derive_seed, make_generator


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a classifier is trained: `steps` updates in all. Progress is saved every `save_every_s` seconds.

    Images that take less than `memory_gib` are decoded once and kept on the device, more are read again and again.
    """

    steps: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.0
    precision: Precision = "float32"
    compile: bool = False
    log_every: int = 20
    save_every_s: float = 15.0
    memory_gib: float = 8.0

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
        for name in ("momentum", "warmup_fraction", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in [0, 1)")


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


# Loss of (logits (N, K), the view the student saw (N, C, H, W), its class probabilities (N, K)).
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
LossOfView = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt: a loss of views (N, C, H, W) with class probabilities (N, K); made by `make_task`.

    Batches and views are drawn for (seed, purpose, step).
    """

    loss: LossOfView
    num_classes: int
    seed: int
    purpose: str


def make_task(
    classifier: Classifier,
    objective: Objective,
    config: TrainingConfig,
    *,
    num_classes: int,
    seed: int,
    purpose: str,
) -> Task:
    """The task of training `classifier` on an objective; what is compiled for it lives as long as the task."""

    def loss(view: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(view.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return objective(classifier(view), view, targets)

    loss_of = compiled(loss, classifier.mean.device) if config.compile else loss
    return Task(loss=loss_of, num_classes=num_classes, seed=seed, purpose=purpose)


def label_objective(config: TrainingConfig) -> Objective:
    """Cross-entropy with the labels: how a teacher is trained."""
    return lambda logits, view, targets: label_loss(logits, targets, config.label_smoothing)


def distillation_objective(teacher: Classifier, config: DistillConfig) -> Objective:
    """The frozen teacher's logits of the same view that the student saw, and optionally the labels."""

    def loss(logits: Tensor, view: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(view)
        total = distillation_loss(logits, teacher_logits, config.temperature)
        if config.label_weight:
            total = total + config.label_weight * label_loss(logits, targets, config.label_smoothing)
        return total

    return loss


@dataclass
class TrainState:
    """All that a resume needs: the network, its optimiser, the number of steps done; and the file that keeps it."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    path: Path
    identity: Mapping[str, Any]
    step: int = 0

    @classmethod
    def open(
        cls, classifier: Classifier, config: TrainingConfig, path: Path, identity: Mapping[str, Any], step: int = 0
    ) -> Self:
        """The state kept in `path`, or, where there is none, a fresh one before `step`.

        Raises ValueError when the file is damaged, ConfigError when it is of another identity.
        """
        state = cls(classifier, build_optimizer(classifier.network, config), path, identity, step)
        if path.exists():
            state._restore()
        return state

    def save(self) -> None:
        """Write the state atomically."""
        content = {
            "identity": json.dumps(to_plain(self.identity), default=str),
            "step": self.step,
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_file(self.path) as file:
            torch.save(content, file)

    def _restore(self) -> None:
        try:
            content: dict[str, Any] = load_tensors(self.path)
        except (ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); remove it to train from the start") from error
        refuse_other(str(self.path), json.loads(content["identity"]), self.identity)
        self.classifier.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; no weight decay on biases and BatchNorm."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr)


def train(
    state: TrainState,
    task: Task,
    images: ImageSet,
    config: TrainingConfig,
    world: World,
    *,
    until: int | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Train `state.classifier` in place, from `state.step` up to step `until`, by default all of `config.steps`.

    All workers call this and share each batch; their weights stay the same, only the leader saves. A resumed run sees
    what an uninterrupted one sees. `on_step` is called every `log_every` steps and after the last.
    Raises ValueError when the workers cannot share a batch evenly, FloatingPointError when the loss is not finite; a
    state saved before stays as it was.
    """
    if config.batch_size % world.size or config.batch_size < 2 * world.size:
        raise ValueError(
            f"batch_size: {config.batch_size} cannot be shared by {world.size} workers; take a multiple of "
            f"{world.size}, at least {2 * world.size}, or another number of workers"
        )
    device = world.device
    state.classifier.train()
    rates = learning_rates(config.schedule, config.lr, config.steps, config.warmup_fraction)
    until = config.steps if until is None else until
    losses = torch.zeros(until, device=device)
    checked, saved_at = state.step, time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        shares = (_share(task, images, config, world, step) for step in range(state.step, until))
        for pixels, labels in load_batches(images, shares, device):
            step = state.step
            losses[step] = _train_step(state, task, config, world, rates[step], pixels, labels)
            state.step += 1
            log = step % config.log_every == 0 or state.step == until
            save = time.monotonic() - saved_at > config.save_every_s
            if log or save:
                _check_finite(losses, checked, state.step)
                checked = state.step
            if log and on_step:
                on_step(step, {"loss": losses[step].item(), "lr": rates[step]})
            if save and world.is_leader:
                state.save()
                saved_at = time.monotonic()


def _share(task: Task, images: ImageSet, config: TrainingConfig, world: World, step: int) -> Tensor:
    """Indices of this worker's share of the batch of a step."""
    batch = draw_batch(len(images.labels), config.batch_size, task.seed, f"{task.purpose}/order", step)
    return batch[world.rank :: world.size]


def _train_step(
    state: TrainState, task: Task, config: TrainingConfig, world: World, lr: float, pixels: Tensor, labels: Tensor
) -> Tensor:
    """One update by this worker's share of a batch; returns its loss, detached and still on the device."""
    purpose = f"{task.purpose}/{world.rank}"
    targets = F.one_hot(labels, task.num_classes).float()
    generator = make_generator(task.seed, purpose, state.step)
    view, targets = augment(to_unit(pixels), targets, config.augment, generator)
    torch.manual_seed(derive_seed(task.seed, f"{purpose}/layers", state.step))  # dropout takes no generator
    loss = task.loss(view, targets)
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    world.average([p.grad for p in state.classifier.parameters() if p.grad is not None])
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    return loss.detach()


def _check_finite(losses: Tensor, start: int, stop: int) -> None:
    bad = (~torch.isfinite(losses[start:stop])).nonzero()
    if len(bad):
        step = start + int(bad[0, 0])
        raise FloatingPointError(f"training: the loss is {losses[step].item()} at step {step}; lower lr")
