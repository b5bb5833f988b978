"""A rough estimate of time and memory from a few uncompiled passes; `make estimate` measures whole steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.views import scaled_size
from pipeline.doctor.examination import Examination
from pipeline.doctor.findings import Finding, ok, problem, warning
from pipeline.runtime.acceleration import Precision
from pipeline.runtime.device import synchronize
from pipeline.runtime.hardware import free_memory_bytes, multiplies_bfloat16
from pipeline.runtime.quantities import duration, size
from pipeline.runtime.seeds import make_generator

# Pixels of the timed batch, over its images, and its passes; the first one warms up.
TIMED_PIXELS, NUM_PASSES = 2**17, 3
# Memory of a step in units of what its forward pass keeps: gradients and buffers come on top.
PEAK_FACTOR = 1.5


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """Seconds and bytes of one image in a forward and backward pass."""

    seconds: float
    num_bytes: float


def check_estimate(examination: Examination) -> Iterator[Finding]:
    """The time of synthesis and distillation, and the memory of a step beside what is free."""
    config, networks, context = examination.config, examination.networks, examination.context
    if not {"teacher", "student"} <= networks.keys():
        yield warning("estimate", "not made, since teacher or student cannot be loaded; load them first")
        return
    synthesis, distill = config.synthesis, config.distill
    training = _measure_training(examination)
    distill_s = training.seconds * distill.batch_size * distill.steps / context.size
    step_bytes = training.num_bytes * distill.batch_size / context.size
    times = f"{duration(distill_s)} of distillation"
    if not distill.shards:
        inverting = _measure_inversion(examination)
        # A phase of half the side has a quarter of the pixels.
        num_steps = sum(phase.steps * phase.scale**2 for phase in synthesis.inversion.phases)
        synthesis_s = inverting.seconds * synthesis.num_images * num_steps / context.size
        step_bytes = max(step_bytes, inverting.num_bytes * synthesis.batch_size)
        times = f"{duration(synthesis_s)} of synthesis and {times}"
    needed, free = PEAK_FACTOR * step_bytes * context.local_size, free_memory_bytes(context.device)
    memory = f"a step takes about {size(round(needed))} of {size(free)} free memory"
    if needed > free:
        fix = "lower synthesis.batch_size and distill.batch_size, or the number of processes"
        yield problem("estimate", f"{memory}; {fix} (about {times})")
    else:
        yield ok("estimate", f"about {times}, uncompiled; {memory}; the command `estimate` measures whole steps")


def _measure_inversion(examination: Examination) -> _Cost:
    """A step of inversion at full size: teacher and ensemble, back to the pixels."""
    inversion, networks = examination.config.synthesis.inversion, examination.networks
    members = [network for key, network in networks.items() if key == "teacher" or key.startswith("ensemble.")]

    def forward(pixels: Tensor) -> Tensor:
        return torch.stack([network.all_logits(pixels).float().sum() for network in members]).sum()

    size = scaled_size(inversion.view_scale, examination.config.images.size)
    return _measure(examination, forward, size, inversion.precision)


def _measure_training(examination: Examination) -> _Cost:
    """A step of distillation: the teacher's logits, and the student, back to its weights."""
    distill, networks = examination.config.distill, examination.networks
    teacher, student = networks["teacher"], networks["student"]

    def forward(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            targets = teacher(pixels)
        loss: Tensor = (student(pixels) - targets).float().square().mean()
        return loss

    student.requires_grad_(True)
    _, _, height, width = distill.view_shape(examination.config.images.shape)
    cost = _measure(examination, forward, (height, width), distill.precision)
    student.requires_grad_(False).zero_grad(set_to_none=True)
    return cost


def _measure(
    examination: Examination, forward: Callable[[Tensor], Tensor], size: tuple[int, int], precision: Precision
) -> _Cost:
    device, channels = examination.device, examination.config.images.channels
    # Odd, so that what is kept for each image is told from weights, whose first size is usually even.
    count = TIMED_PIXELS // (size[0] * size[1]) | 1
    pixels = torch.rand(count, channels, *size, generator=make_generator(0, "doctor/cost")).to(device).requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[:1] == (count,):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    uses_bfloat16 = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
    seconds = []
    for _ in range(NUM_PASSES):
        kept.clear()
        started = time.perf_counter()
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = forward(pixels)
        torch.autograd.backward(loss)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return _Cost(seconds=min(seconds[1:]) / count, num_bytes=sum(kept.values()) / count)
