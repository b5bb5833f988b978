"""How the time of one step of inversion is spent, and which share of the machine's matrix rate it reaches.

    python -m benchmarks.profile                       the networks and options of benchmarks.inversion

A step of the loop is timed beside its forward and backward pass alone, in turn. The difference is the overhead: views,
optimizer, clamping, logging. What a batch needs once, as its initial noise, is left out: the time of a step is that of
the second half of an inversion of twice the steps.

PyTorch's profiler measures the shares, by the names of the operations, on CUDA by the names of the kernels. On CUDA,
the rest of a step is gaps in which the device waits for a launch. Floating-point operations are counted on the
uncompiled step. Writes results/profile-NETWORK-DEVICE.json.
"""

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timed
from benchmarks.inversion import build_config, build_images, make_labels, measure_network, open_network
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Objective

TURNS = 7
# Side of the square bfloat16 matrices whose product gives the machine's peak, and the products in one measurement.
PEAK_SIDE, PEAK_PRODUCTS = {"cpu": 2048, "cuda": 8192}, 10
# (group, words): an operation is in the first group with a word that its name contains. On the CPU, everything that
# the compiler fuses has the name of the graph.
GROUPS = (
    ("convolution", ("conv", "cudnn", "cutlass", "implicit_gemm", "xmma")),
    ("matrix product", ("gemm", "mm", "linear", "nvjet")),
    ("optimizer", ("adam", "foreach", "multi_tensor", "lerp", "addcdiv", "addcmul")),
    ("fused by the compiler: statistics, normalization, activations, terms", ("triton", "compiledfxgraph")),
)


def forward_backward(objective: Objective, inputs: Tensor, labels: Tensor, num_steps: int) -> None:
    """The forward and backward pass of `num_steps` steps, which no loop can do without."""
    for _ in range(num_steps):
        leaf = inputs.detach().requires_grad_()
        total, _ = objective.loss(leaf, labels)
        torch.autograd.backward(total)


def peak_flops(context: DistributedContext) -> float:
    """Floating-point operations per second of a bfloat16 matrix product."""
    side = PEAK_SIDE[context.device.type]
    left, right = (torch.randn(side, side, device=context.device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(PEAK_PRODUCTS):
            left @ right

    return PEAK_PRODUCTS * 2 * side**3 / statistics.median(timed(context, multiply)[0] for _ in range(TURNS))


def flops_per_step(
    arguments: argparse.Namespace, config: InversionConfig, inputs: Tensor, context: DistributedContext
) -> int:
    """Floating-point operations of one forward and backward pass; a multiplication and an addition count as two."""
    counter = FlopCounterMode(display=False)
    eager = replace(config, compile=False, cuda_graphs=False)
    with open_network(arguments, eager, context) as objective, counter:
        forward_backward(objective, inputs, make_labels(arguments, context), 1)
    return int(counter.get_total_flops())


def busy_seconds(
    objective: Objective, labels: Tensor, config: InversionConfig, context: DistributedContext
) -> dict[str, float]:
    """Seconds per step in which the device works on each group, the longest first."""
    on_cuda = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        timed(context, invert, objective, labels, config, make_generator(0, "views"))
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        time_us = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        # On CUDA the host's operations carry the time of the kernels they launched, which are events of their own.
        if (event.device_type != DeviceType.CPU) == on_cuda and not event.is_user_annotation:
            seconds[_group_of(event.key)] += time_us / 1e6 / config.num_steps
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _group_of(operation: str) -> str:
    return next((name for name, words in GROUPS if any(word in operation.lower() for word in words)), "others")


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Seconds of a step and of its forward and backward pass, the rates that follow, and the shares."""
    config, labels = build_config(arguments, context), make_labels(arguments, context)
    shape = (arguments.batch_size, *build_images(arguments).shape)
    inputs = init_noise(shape, InitNoiseConfig(), make_generator(0, "inputs")).to(context.device)
    doubled = replace(config, phases=(PhaseConfig(steps=2 * config.num_steps),))
    step_s, passes_s = [], []
    with open_network(arguments, config, context) as objective:
        for turn in range(TURNS + 1):
            once_s, _ = timed(context, invert, objective, labels, config, make_generator(turn, "views"))
            twice_s, _ = timed(context, invert, objective, labels, doubled, make_generator(turn, "views"))
            all_passes_s, _ = timed(context, forward_backward, objective, inputs, labels, config.num_steps)
            if turn:  # the first turn compiles and warms up
                step_s.append((twice_s - once_s) / config.num_steps)
                passes_s.append(all_passes_s / config.num_steps)
        busy_s = busy_seconds(objective, labels, config, context)
    median_s, total_busy_s = statistics.median(step_s), sum(busy_s.values())
    flops, peak = flops_per_step(arguments, config, inputs, context), peak_flops(context)
    return {
        "step_s": step_s,
        "forward_backward_s": passes_s,
        "overhead": 1 - statistics.median(passes / step for passes, step in zip(passes_s, step_s, strict=True)),
        "flops_per_step": flops,
        "achieved_flops": flops / median_s,
        "peak_flops": peak,
        "share_of_peak": flops / median_s / peak,
        "shares": {name: seconds / total_busy_s for name, seconds in busy_s.items()},
        "launch_gaps": max(0.0, 1 - total_busy_s / median_s) if context.device.type == "cuda" else None,
    }


if __name__ == "__main__":
    measure_network("profile", __doc__, measure)
