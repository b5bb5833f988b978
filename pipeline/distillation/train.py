"""The training loop of students and of teachers."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import load_batches
from pipeline.distillation.state import TrainState, write_state
from pipeline.distillation.task import Task
from pipeline.runtime.distributed import DistributedContext, explain_lost_peer
from pipeline.runtime.interrupts import delayed_interrupts
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import learning_rates
from pipeline.runtime.threads import Overlap, overlapped


def train(
    state: TrainState, task: Task, images: ImageSet, context: DistributedContext, on_step: OnStep | None = None
) -> None:
    """Train the classifier of `state` and `task` in place, from `state.step` to `state.end`.

    All ranks call this and share each batch. Their weights stay the same; only rank 0 saves. A resumed run sees the
    batches and views of an uninterrupted one. `on_step` is called every `log_every` steps and after the last, with the
    mean loss over the ranks. Only these steps wait for the device: they check the losses before the update, and a
    thread then saves the state. When a rank is interrupted, all finish the same step, the state is saved, and
    KeyboardInterrupt is raised.
    Raises FloatingPointError when a loss is not finite; the state that was saved last stays as it was.
    """
    assert task.classifier is state.classifier and task.config.batch_size == state.config.batch_size
    config, device = state.config, context.device
    assert config.batch_size % context.size == 0, "see `DistillConfig.require_even_shares`"
    state.classifier.train()
    rates = learning_rates(config.schedule, config.lr, config.steps, config.warmup_fraction)
    losses = _Losses(state, context)
    parallel, saved_at = context.parallel(task), time.monotonic()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        delayed_interrupts() as interrupt,
        overlapped() as writer,
    ):
        shares = (task.share(len(images.labels), step, context) for step in range(state.step, state.end))
        for pixels, labels in load_batches(images, shares, device):
            step = state.step
            view, targets = task.view(pixels, labels, step, context.rank)
            losses.record(step, _backward(state, parallel, view, targets))
            is_interrupted = context.on_any_rank(interrupt.has_arrived)
            is_logged = step % config.log_every == 0 or step == state.end - 1 or is_interrupted
            figures = {"loss": losses.check(step + 1), "lr": rates[step]} if is_logged else {}
            _update(state, rates[step])
            if is_logged and on_step:
                on_step(step, figures)
            if is_logged and context.is_main_process and time.monotonic() - saved_at > config.save_every_s:
                saved_at = _save_in_background(state, writer, saved_at)
            if is_interrupted:
                interrupt.stop()
                if context.is_main_process:
                    writer.start(partial(_write, state, state.on_host()))
                    state.is_saved = True
                break


def _backward(state: TrainState, task: nn.Module, view: Tensor, targets: Tensor) -> Tensor:
    """Compute the gradients, averaged over the ranks; returns the loss of this rank, still on the device."""
    state.optimizer.zero_grad()
    with explain_lost_peer():
        loss: Tensor = task(view, targets)
        torch.autograd.backward(loss)
    return loss.detach()


def _update(state: TrainState, lr: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.step += 1


def _save_in_background(state: TrainState, writer: Overlap, saved_at: float) -> float:
    """Start writing the state and return the time; while an earlier state is still written, return `saved_at`."""
    if writer.is_busy:
        return saved_at
    writer.start(partial(_write, state, state.on_host()))
    return time.monotonic()


def _write(state: TrainState, content: Mapping[str, Any]) -> None:
    write_state(state.path, content)
    if state.after_write:
        state.after_write(state.path)


class _Losses:
    """The losses of all steps, on the device; only `check` transfers them."""

    def __init__(self, state: TrainState, context: DistributedContext) -> None:
        self._losses, self._num_checked = torch.zeros(state.end, device=context.device), state.step
        self._section, self._context = state.config.SECTION, context

    def record(self, step: int, loss: Tensor) -> None:
        """Store the loss of a step of this rank."""
        self._losses[step] = loss

    def check(self, end: int) -> float:
        """The mean over the ranks of the last loss before step `end`.

        Raises FloatingPointError, on every rank, when a loss since the last check is not finite.
        """
        means = self._context.mean(self._losses[self._num_checked : end]).tolist()
        for step, loss in enumerate(means, self._num_checked):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{self._section}: the loss is {loss} at step {step}; lower {self._section}.lr"
                )
        self._num_checked = end
        return float(means[-1])
