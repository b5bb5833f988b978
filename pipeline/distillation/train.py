"""Training of a classifier on images, for a teacher on labels and for a student on a teacher's logits; resumable."""

import math
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import draw_batch, load_batches
from pipeline.data.views import augment
from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.state import TrainState, write_state
from pipeline.distillation.task import Task
from pipeline.runtime.distributed import World, explained_loss
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import learning_rates
from pipeline.runtime.seeds import derive_seed, make_generator
from pipeline.runtime.threads import Overlap, overlapped


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
