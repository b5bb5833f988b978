"""Inversion: optimise a batch of images until a frozen teacher sees the wanted classes with familiar statistics."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.codec import to_uint8
from pipeline.data.views import roll_and_flip, zoom
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import learning_rates
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.inputs import canvas_range, draw_canvas, to_pixels
from pipeline.synthesis.objective import Objective, phase_size


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """One finished batch: images uint8 (N, C, H, W), labels (N,), and the weighted terms of every step (steps, T)."""

    images: Tensor
    labels: Tensor
    term_names: tuple[str, ...]
    trace: Tensor


def invert(
    objective: Objective,
    labels: Tensor,
    size: tuple[int, int],
    config: InversionConfig,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> Inversion:
    """Optimise one canvas for each label (N,) through all phases and return the last iterate, quantised.

    `labels` are on the device of the objective's networks. All randomness comes from `generator`. `on_step` is called
    every `log_every` steps with the step and the weighted terms. Raises FloatingPointError with step and term when a
    term is not finite.
    """
    teacher, names = objective.teacher, tuple(objective.terms)
    trace = torch.zeros(config.num_steps, len(names), device=labels.device)
    logger = _TraceLogger(trace, names, config.log_every, on_step)
    shape = phase_size(config.phases[0].scale, *size)
    canvas = draw_canvas((len(labels), teacher.mean.shape[1], *shape), config.canvas, generator).to(labels.device)
    first_step = 0
    for phase in config.phases:
        shape = phase_size(phase.scale, *size)
        if canvas.shape[2:] != shape:
            canvas = F.interpolate(canvas, shape, mode="bilinear", align_corners=False)
        canvas = _run_phase(objective, canvas, labels, phase, config, generator, logger, first_step)
        first_step += phase.steps
    if not torch.isfinite(canvas).all():
        raise FloatingPointError(
            f"inversion: the images are not finite after step {config.num_steps}; lower synthesis.inversion.lr"
        )
    return Inversion(images=to_uint8(to_pixels(canvas)).cpu(), labels=labels.cpu(), term_names=names, trace=trace.cpu())


class _TraceLogger:
    """Keeps the terms of every step on the device; looks at them, which synchronises, only on logging steps."""

    def __init__(self, trace: Tensor, names: tuple[str, ...], every: int, on_step: OnStep | None) -> None:
        self.trace, self.names, self.every, self.on_step = trace, names, every, on_step
        self.checked = 0

    def record(self, step: int, parts: Tensor) -> None:
        """Store the terms of `step`; before a logging step's update, check all since the last one and report."""
        self.trace[step] = parts
        if step % self.every == 0 or step == len(self.trace) - 1:
            self.check(step + 1)
            if self.on_step:
                self.on_step(step, dict(zip(self.names, self.trace[step].tolist(), strict=True)))

    def check(self, end: int) -> None:
        """Raise FloatingPointError when a term before step `end` is not finite."""
        bad = (~torch.isfinite(self.trace[self.checked : end])).nonzero()
        if len(bad):
            step, term = (self.checked + int(bad[0, 0]), self.names[int(bad[0, 1])])
            raise FloatingPointError(
                f"inversion: term {term!r} is {self.trace[step, bad[0, 1]].item()} at step {step}; "
                f"lower synthesis.inversion.lr or synthesis.inversion.terms.{term}"
            )
        self.checked = end


def _run_phase(
    objective: Objective,
    canvas: Tensor,
    labels: Tensor,
    phase: PhaseConfig,
    config: InversionConfig,
    generator: torch.Generator,
    logger: _TraceLogger,
    first_step: int,
) -> Tensor:
    """Adam on the canvas for one phase, with random views and clamping; returns the last iterate."""
    canvas = canvas.detach().clone().requires_grad_()
    # Fused, the update reads the canvas once; else it is a pass for each of its seven operations.
    optimizer = torch.optim.Adam([canvas], lr=config.lr, betas=config.betas, fused=True)
    low, high = canvas_range()
    rates = learning_rates(config.schedule, config.lr, phase.steps, config.warmup_fraction)
    shift_px = round(config.shift_px * phase.scale)
    for step, lr in enumerate(rates, first_step):
        view = roll_and_flip(canvas, shift_px, config.flip, generator)
        if config.crop_area[0] < 1:
            view = zoom(view, config.crop_area, generator)
        leaf = view.detach().requires_grad_()  # what is compiled for a leaf never meets a graph of its caller
        total, parts = objective(leaf, labels)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        torch.autograd.backward(view, leaf.grad)
        logger.record(step, parts)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        if config.clamp:
            with torch.no_grad():
                canvas.clamp_(low, high)
    return canvas.detach()
