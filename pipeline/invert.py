"""Inversion: optimise a batch of images until a frozen teacher sees the wanted classes with familiar statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.acceleration import Compile, Precision
from pipeline.canvas import CanvasConfig, canvas_range, draw_canvas, to_pixels
from pipeline.capture import LayerStatistics, capture_statistics
from pipeline.codec import to_uint8
from pipeline.compiler import compiled
from pipeline.config import ConfigError
from pipeline.models import Classifier
from pipeline.recorder import OnStep
from pipeline.schedules import Schedule, learning_rates
from pipeline.terms import TermConfig, View, build_terms, weighted_sum
from pipeline.views import check_crop_area, roll_and_flip, zoom


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """Optimise at `scale` times the image size for `steps` steps."""

    scale: float = 1.0
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale: {self.scale} must be in (0, 1]")
        if self.steps < 1:
            raise ConfigError(f"steps: {self.steps} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How one batch is optimised. The last phase has scale 1; `shift_px` is given there and scaled with the phase.

    With `crop_area`, every step sees a box of each image, its share of the area drawn from that range, scaled up: the
    class has to be in every part of the image. `cuda_graphs` launches the kernels of a compiled step as one.
    """

    phases: tuple[PhaseConfig, ...]
    terms: TermConfig
    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    shift_px: int = 0
    flip: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    clamp: bool = True
    precision: Precision = "auto"
    compile: Compile = "auto"
    cuda_graphs: bool = False
    log_every: int = 50

    def __post_init__(self) -> None:
        if not self.phases or self.phases[-1].scale != 1:
            raise ConfigError("phases: the last phase must have scale 1, it makes the images that are stored")
        if self.lr <= 0:
            raise ConfigError(f"lr: {self.lr} must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: {list(self.betas)} must lie in [0, 1)")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"warmup_fraction: {self.warmup_fraction} must be in [0, 1)")
        if self.shift_px < 0:
            raise ConfigError(f"shift_px: {self.shift_px} must be at least 0")
        check_crop_area(self.crop_area)
        if self.cuda_graphs and not self.compile:
            raise ConfigError("cuda_graphs: true needs compile: true or auto")
        if self.log_every < 1:
            raise ConfigError(f"log_every: {self.log_every} must be at least 1")

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """One finished batch: images uint8 (N, C, H, W), labels (N,), and the weighted terms of every step (steps, T)."""

    images: Tensor
    labels: Tensor
    term_names: tuple[str, ...]
    trace: Tensor


class Objective:
    """The weighted loss of a view, with the teacher's hooks in place; made by `open_objective`."""

    def __init__(
        self,
        teacher: Classifier,
        rival: Classifier | None,
        ensemble: Sequence[Classifier],
        config: InversionConfig,
        statistics: list[LayerStatistics],
    ) -> None:
        assert "auto" not in (config.precision, config.compile), "decided by `acceleration.resolved`"
        self.teacher, self.rival, self.ensemble, self.precision = teacher, rival, ensemble, config.precision
        self.terms = build_terms(config.terms, has_rival=rival is not None)
        self._statistics = statistics
        self._loss = self._eager_loss
        if config.compile:
            self._loss = compiled(self._eager_loss, teacher.mean.device, cuda_graphs=config.cuda_graphs)

    def __call__(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The total, and the weighted terms, detached, of shape (T,), of view (N, C, H, W) and labels (N,)."""
        return self._loss(view, labels)

    def _eager_loss(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._statistics.clear()
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            pixels = to_pixels(view)
            logits = self.teacher(pixels)
            rival_logits = None if self.rival is None else self.rival(pixels)
            ensemble_logits = [network(pixels) for network in self.ensemble]
        seen = View(
            images=view,
            logits=logits,
            labels=labels,
            statistics=list(self._statistics),
            ensemble_logits=ensemble_logits,
            rival_logits=rival_logits,
        )
        self._statistics.clear()  # what is left in it would be a result of the compiled step
        total, parts = weighted_sum(self.terms, seen)
        return total, torch.stack(list(parts.values()))


@contextmanager
def open_objective(
    teacher: Classifier, rival: Classifier | None, config: InversionConfig, ensemble: Sequence[Classifier] = ()
) -> Iterator[Objective]:
    """The objective of `invert`, for any number of batches: what is compiled for one serves the others of its size.

    All networks are frozen and on the same device. The teacher's hooks are removed when the block ends.
    """
    with capture_statistics(teacher.network) as statistics:
        yield Objective(teacher, rival, ensemble, config, statistics)


def phase_size(scale: float, height: int, width: int) -> tuple[int, int]:
    """Canvas (height, width) of a phase, at least two pixels, since the variation of one is nothing."""
    return max(2, round(height * scale)), max(2, round(width * scale))


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
