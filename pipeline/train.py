"""Training of a classifier on images, for a teacher on labels and for a student on a teacher's logits; resumable."""

import io
import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pipeline.acceleration import Compile, Precision
from pipeline.codec import to_unit
from pipeline.compiler import compiled
from pipeline.config import ConfigError, refuse_other, to_plain
from pipeline.data import ImageSet, draw_batch, load_batches
from pipeline.files import atomic_file
from pipeline.losses import distillation_loss, label_loss
from pipeline.models import Classifier
from pipeline.recorder import OnStep
from pipeline.schedules import Schedule, learning_rates
from pipeline.views import AugmentConfig, augment
from pipeline.weights import load_tensors
from pipeline.world import Overlap, World, derive_seed, explained_loss, make_generator, overlapped, synchronise

# What is usual for SGD with Nesterov momentum; AdamW has none.
SGD_MOMENTUM = 0.9


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


# Loss of (logits (N, K), the view the student saw (N, C, H, W), its class probabilities (N, K)).
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Task(nn.Module):
    """What is learnt: `classifier` on an objective, as one module, so that DistributedDataParallel sees every pass.

    Batches and views are drawn for (seed, purpose, step). What is compiled lives as long as the task.
    """

    def __init__(
        self,
        classifier: Classifier,
        objective: Objective,
        config: TrainingConfig,
        *,
        num_classes: int,
        seed: int,
        purpose: str,
    ) -> None:
        super().__init__()
        assert "auto" not in (config.precision, config.compile), "decided by `acceleration.resolved`"
        self.classifier, self.num_classes, self.seed, self.purpose = classifier, num_classes, seed, purpose
        self._objective, self._precision = objective, config.precision
        self._loss = compiled(self._eager_loss, classifier.mean.device) if config.compile else self._eager_loss

    def forward(self, view: Tensor, targets: Tensor) -> Tensor:
        """The loss of views (N, C, H, W) with class probabilities (N, K)."""
        return self._loss(view, targets)

    def _eager_loss(self, view: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            return self._objective(self.classifier(view), view, targets)


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
        write_state(self.path, self.on_host())

    def on_host(self) -> dict[str, Any]:
        """What a resume needs, copied to the host: training may go on while it is written."""
        content = {
            "identity": json.dumps(to_plain(self.identity), default=str),
            "step": self.step,
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        copied: dict[str, Any] = tree_map_only(Tensor, _host_copy, content)
        synchronise(self.classifier.mean.device)
        return copied

    def _restore(self) -> None:
        try:
            content: dict[str, Any] = load_tensors(self.path)
        except (ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); remove it to train from the start") from error
        refuse_other(str(self.path), json.loads(content["identity"]), self.identity)
        self.classifier.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, complete when the device is synchronised."""
    return tensor.detach().to("cpu", copy=True, non_blocking=True)


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `TrainState.on_host` gave, atomically."""
    buffer = io.BytesIO()  # on a full disk, writing bytes raises OSError, torch.save into a file RuntimeError
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; no weight decay on biases and BatchNorm."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        momentum = SGD_MOMENTUM if config.momentum is None else config.momentum
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0)
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
    what an uninterrupted one sees. `on_step` is called every `log_every` steps and after the last, with the mean loss
    of the workers; only then does anything wait for the device, is the loss checked, before the update, and the state
    saved, by a thread.
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
    until = config.steps if until is None else until
    rates = learning_rates(config.schedule, config.lr, config.steps, config.warmup_fraction)
    losses = _Losses(until, state.step, world)
    parallel, saved_at = world.parallel(task), time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), overlapped() as writer:
        shares = (_share(task, images, config, world, step) for step in range(state.step, until))
        for pixels, labels in load_batches(images, shares, device):
            step = state.step
            view, targets = _view(task, config, world, step, pixels, labels)
            losses.record(step, _backward(state, parallel, view, targets))
            log = step % config.log_every == 0 or step == until - 1
            figures = {"loss": losses.check(step + 1), "lr": rates[step]} if log else {}
            _update(state, rates[step])
            if log and on_step:
                on_step(step, figures)
            if log and world.is_leader and time.monotonic() - saved_at > config.save_every_s:
                saved_at = _save_beside(state, writer, saved_at)


def _share(task: Task, images: ImageSet, config: TrainingConfig, world: World, step: int) -> Tensor:
    """Indices of this worker's share of the batch of a step."""
    batch = draw_batch(len(images.labels), config.batch_size, task.seed, f"{task.purpose}/order", step)
    return batch[world.rank :: world.size]


def _view(
    task: Task, config: TrainingConfig, world: World, step: int, pixels: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """This worker's view of its share of a batch, with class probabilities; layers then draw for this step, too."""
    purpose = f"{task.purpose}/{world.rank}"
    targets = F.one_hot(labels, task.num_classes).float()
    view = augment(to_unit(pixels), targets, config.augment, make_generator(task.seed, purpose, step))
    torch.manual_seed(derive_seed(task.seed, f"{purpose}/layers", step))  # dropout takes no generator
    return view


def _backward(state: TrainState, task: nn.Module, view: Tensor, targets: Tensor) -> Tensor:
    """The gradients of this worker's share, averaged over the workers; returns its loss, still on the device."""
    state.optimizer.zero_grad()
    with explained_loss():
        loss: Tensor = task(view, targets)
        torch.autograd.backward(loss)
    return loss.detach()


def _update(state: TrainState, lr: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.step += 1


def _save_beside(state: TrainState, writer: Overlap, saved_at: float) -> float:
    """Have the state written while training goes on; returns when, or `saved_at` while the one before is written."""
    if writer.is_busy:
        return saved_at
    writer.start(partial(write_state, state.path, state.on_host()))
    return time.monotonic()


class _Losses:
    """Keeps the loss of every step on the device, where it is looked at only in `check`."""

    def __init__(self, num_steps: int, first_step: int, world: World) -> None:
        self._losses, self._checked, self._world = torch.zeros(num_steps, device=world.device), first_step, world

    def record(self, step: int, loss: Tensor) -> None:
        """Store this worker's loss of a step."""
        self._losses[step] = loss

    def check(self, end: int) -> float:
        """The mean over the workers of the last loss before step `end`.

        Raises FloatingPointError, on every worker, when one since the last check is not finite.
        """
        means = self._world.mean(self._losses[self._checked : end]).tolist()
        for step, loss in enumerate(means, self._checked):
            if not math.isfinite(loss):
                raise FloatingPointError(f"training: the loss is {loss} at step {step}; lower lr")
        self._checked = end
        return float(means[-1])
