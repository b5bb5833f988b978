"""Inversion: optimize inputs until a frozen teacher predicts their labels, with features as in its training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.codec import to_uint8
from pipeline.data.views import random_resized_crop, roll_and_flip, scaled, scaled_size
from pipeline.runtime.schedules import learning_rates
from pipeline.synthesis.basis import build_basis
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.inputs import init_noise, input_range, to_pixels
from pipeline.synthesis.objective import Objective

# Called on a logging step with the step, its weighted terms, and its inputs (N, C, h, w) at the size of the phase. The
# inputs are updated in place after the call.
OnInversionStep = Callable[[int, dict[str, float], Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What `invert` calls: `before_step` before every step, `on_step` on logging steps; what they raise ends it."""

    before_step: Callable[[], None] | None = None
    on_step: OnInversionStep | None = None


NO_CALLBACKS = Callbacks()


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
    config: InversionConfig,
    generator: torch.Generator,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Inversion:
    """Optimize one input for each label (N,) through all phases; returns the images of the last step, quantized.

    `labels` are on the device of the objective. All randomness comes from `generator`. Logging steps are every
    `log_every` steps and the last one. Raises FloatingPointError with step and term when a term is not finite.
    """
    trace = _Trace(config, tuple(objective.terms), labels.device, callbacks)
    batch = _Batch(labels, generator, trace)
    num_channels = objective.networks.teacher.mean.shape[1]
    shape = scaled_size(config.phases[0].scale, objective.image_size)
    inputs = init_noise((len(labels), num_channels, *shape), config.init_noise, generator).to(labels.device)
    for phase in config.phases:
        shape = scaled_size(phase.scale, objective.image_size)
        if inputs.shape[2:] != shape:
            inputs = F.interpolate(inputs, shape, mode="bilinear", align_corners=False)
        inputs = _run_phase(objective, batch, inputs, phase, config)
    if not torch.isfinite(inputs).all():
        raise FloatingPointError(
            f"inversion: the images are not finite after step {config.num_steps}; lower synthesis.inversion.lr"
        )
    images = to_uint8(to_pixels(inputs)).cpu()
    return Inversion(images=images, labels=labels.cpu(), term_names=trace.names, trace=trace.terms.cpu())


class _Trace:
    """The terms of every step, on the device; only logging steps transfer them, which synchronizes."""

    def __init__(
        self, config: InversionConfig, names: tuple[str, ...], device: torch.device, callbacks: Callbacks
    ) -> None:
        self.terms, self.names = torch.zeros(config.num_steps, len(names), device=device), names
        self._log_every, self._callbacks = config.log_every, callbacks
        self._step = self._num_checked = 0

    def before_step(self) -> None:
        """Call what wants to know of every step."""
        if self._callbacks.before_step:
            self._callbacks.before_step()

    def record(self, terms: Tensor, inputs: Tensor) -> None:
        """Store the terms (T,) of the next step; on a logging step, check all since the last one, and report both."""
        step = self._step
        self.terms[step] = terms
        self._step += 1
        if step % self._log_every == 0 or step == len(self.terms) - 1:
            self._check()
            if self._callbacks.on_step:
                weighted = dict(zip(self.names, self.terms[step].tolist(), strict=True))
                self._callbacks.on_step(step, weighted, inputs.detach())

    def _check(self) -> None:
        """Raise FloatingPointError when a term since the last check is not finite."""
        not_finite = (~torch.isfinite(self.terms[self._num_checked : self._step])).nonzero()
        if len(not_finite):
            step, index = self._num_checked + int(not_finite[0, 0]), int(not_finite[0, 1])
            term = self.names[index]
            raise FloatingPointError(
                f"inversion: term {term!r} is {self.terms[step, index].item()} at step {step}; "
                f"lower synthesis.inversion.lr or synthesis.inversion.terms.{term}"
            )
        self._num_checked = self._step


@dataclass(frozen=True)
class _Batch:
    """Labels (N,), generator and trace of a batch, the same in all phases."""

    labels: Tensor
    generator: torch.Generator
    trace: _Trace


def _run_phase(
    objective: Objective, batch: _Batch, inputs: Tensor, phase: PhaseConfig, config: InversionConfig
) -> Tensor:
    """Adam on the variables of one phase, with random views and clamping; returns the inputs of the last step."""
    basis = build_basis(config.basis, inputs.shape[1:], config.init_noise, inputs.device)
    variables = basis.encode(inputs).detach().clone().requires_grad_()
    # Fused, the update reads the variables once; else each of its seven operations is a pass over them.
    optimizer = torch.optim.Adam([variables], lr=config.lr, betas=config.betas, fused=True)
    low, high = input_range()
    jitter_px = round(config.jitter_px * phase.scale)
    view_size = scaled_size(config.view_scale, (inputs.shape[2], inputs.shape[3]))
    for lr in learning_rates(config.schedule, config.lr, phase.steps, config.warmup_fraction):
        batch.trace.before_step()
        inputs = basis.decode(variables)
        view = roll_and_flip(inputs, jitter_px, config.flip, batch.generator)
        if config.crop_area[0] < 1:
            view = random_resized_crop(view, config.crop_area, batch.generator, view_size)
        view = scaled(view, view_size)
        # The gradient goes through the view in a second pass: the compiled step is one for leaves, without its graph.
        leaf = view.detach().requires_grad_()
        total, terms = objective.loss(leaf, batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        torch.autograd.backward(view, leaf.grad)
        batch.trace.record(terms, inputs)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        if config.clamp:
            with torch.no_grad():
                basis.clamp_(variables, low, high)
    return basis.decode(variables).detach()
