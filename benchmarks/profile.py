"""Where the time of one step of inversion goes, and how much of the machine's matrix rate it reaches.

    python -m benchmarks.profile                       the same networks and options as benchmarks.inversion

A step of the loop is timed beside its forward and backward pass alone, in turn; the difference is all the rest: views,
optimizer, clamping, logging. The shares come from PyTorch's profiler, by the names of the operations, on CUDA of the
kernels; there, what they leave of a step are the gaps in which the device waits for a launch. Operations are counted on
the uncompiled step. Writes results/profile-NETWORK-DEVICE.json.
"""

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timed
from benchmarks.inversion import config_of, load_teacher, measure_network
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Objective, open_objective

TURNS = 7
# Side of the square bf16 matrices whose product is the machine's peak, and how many products are one measurement.
PEAK_SIDE, PEAK_PRODUCTS = {"cpu": 2048, "cuda": 8192}, 10
# The first group whose word is in an operation's name; on the CPU, all that the compiler fuses has the graph's name.
GROUPS = (
    ("convolution", ("conv", "cudnn", "cutlass", "implicit_gemm", "xmma")),
    ("matrix product", ("gemm", "mm", "linear", "nvjet")),
    ("optimizer", ("adam", "foreach", "multi_tensor", "lerp", "addcdiv", "addcmul")),
    ("fused by the compiler: statistics, normalization, activations, terms", ("triton", "compiledfxgraph")),
)


def forward_backward(objective: Objective, canvas: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """What no step can do without."""
    for _ in range(steps):
        leaf = canvas.detach().requires_grad_()
        total, _ = objective(leaf, labels)
        torch.autograd.backward(total)


def peak_flops(context: DistributedContext) -> float:
    """Operations a second of a bf16 matrix product."""
    side = PEAK_SIDE[context.device.type]
    left, right = (torch.randn(side, side, device=context.device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(PEAK_PRODUCTS):
            left @ right

    return PEAK_PRODUCTS * 2 * side**3 / statistics.median(timed(context, multiply)[0] for _ in range(TURNS))


def flops_of_step(arguments: argparse.Namespace, config: InversionConfig, canvas: torch.Tensor, context: DistributedContext) -> int:
    """Operations of one forward and backward pass, a multiplication and an addition counted as two."""
    labels = torch.zeros(len(canvas), dtype=torch.long, device=context.device)
    counter = FlopCounterMode(display=False)
    eager = replace(config, compile=False, cuda_graphs=False)
    with open_objective(load_teacher(arguments, context), None, eager) as objective, counter:
        forward_backward(objective, canvas, labels, 1)
    return int(counter.get_total_flops())


def busy_seconds(
    arguments: argparse.Namespace, objective: Objective, labels: torch.Tensor, config: InversionConfig, context: DistributedContext
) -> dict[str, float]:
    """Seconds of a step that the device is at work on each group, the longest first."""
    on_cuda = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    size = (arguments.size_px, arguments.size_px)
    with profile(activities=activities, acc_events=True) as profiler:
        timed(context, invert, objective, labels, size, config, make_generator(0, "views"))
    spent_s: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        spent_us = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        # On CUDA the host's operations carry the time of the kernels they launched, which are events of their own.
        if (event.device_type != DeviceType.CPU) == on_cuda and not event.is_user_annotation:
            spent_s[_group_of(event.key)] += spent_us / 1e6 / arguments.steps
    return dict(sorted(spent_s.items(), key=lambda item: -item[1]))


def _group_of(operation: str) -> str:
    return next((name for name, words in GROUPS if any(word in operation.lower() for word in words)), "others")


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Seconds of a step, of its forward and backward pass, the rates that follow, and the shares."""
    config = config_of(arguments, context)
    labels = torch.arange(arguments.batch_size, device=context.device) % arguments.num_classes
    size = (arguments.size_px, arguments.size_px)
    canvas = torch.randn(arguments.batch_size, 3, *size, generator=make_generator(0, "canvas")).to(context.device)
    step_s, needed_s = [], []
    with open_objective(load_teacher(arguments, context), None, config) as objective:
        for turn in range(TURNS + 1):
            loop_s, _ = timed(context, invert, objective, labels, size, config, make_generator(turn, "views"))
            passes_s, _ = timed(context, forward_backward, objective, canvas, labels, arguments.steps)
            if turn:  # the first turn compiles and warms up
                step_s.append(loop_s / arguments.steps)
                needed_s.append(passes_s / arguments.steps)
        busy_s = busy_seconds(arguments, objective, labels, config, context)
    overhead = 1 - statistics.median(passes / step for passes, step in zip(needed_s, step_s, strict=True))
    median_s, total_busy_s = statistics.median(step_s), sum(busy_s.values())
    flops, peak = flops_of_step(arguments, config, canvas, context), peak_flops(context)
    return {
        "step_s": step_s,
        "forward_backward_s": needed_s,
        "overhead": overhead,
        "flops_per_step": flops,
        "achieved_flops": flops / median_s,
        "peak_flops": peak,
        "share_of_peak": flops / median_s / peak,
        "shares": {name: spent / total_busy_s for name, spent in busy_s.items()},
        "launch_gaps": max(0.0, 1 - total_busy_s / median_s) if context.device.type == "cuda" else None,
    }


if __name__ == "__main__":
    measure_network("profile", __doc__, measure)
