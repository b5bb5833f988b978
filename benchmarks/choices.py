"""Is what `auto` chooses the fastest? Inversion compiled and not, in bfloat16 and in float32, in turn on this machine.

    python -m benchmarks.choices --steps 5             the options of benchmarks.inversion

Writes results/choices-NETWORK-DEVICE.json.
"""

import argparse
import statistics
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from benchmarks.harness import timed
from benchmarks.inversion import config_of, load_teacher, measure_network
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import open_objective

TURNS = 3


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Images x steps a second of the four ways, the way that `auto` takes, and its rate over that of the best."""
    auto = config_of(arguments, context)
    ways = {
        _name(way): way
        for compile, precision in product((True, False), ("bfloat16", "float32"))
        for way in [replace(auto, compile=compile, precision=precision)]
    }
    labels = torch.arange(arguments.batch_size, device=context.device) % arguments.num_classes
    size = (arguments.size_px,) * 2
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as resources:
        objectives = {
            name: resources.enter_context(open_objective(load_teacher(arguments, context), None, way))
            for name, way in ways.items()
        }
        for turn in range(TURNS + 1):
            for name, way in ways.items():
                seconds, _ = timed(context, invert, objectives[name], labels, size, way, make_generator(turn, "views"))
                if turn:  # the first turn compiles and warms up
                    rates[name].append(arguments.batch_size * arguments.steps / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "image_steps_per_s": rates,
        "median_image_steps_per_s": medians,
        "chosen": _name(auto),
        "chosen_over_best": medians[_name(auto)] / max(medians.values()),
    }


def _name(config: InversionConfig) -> str:
    return f"{config.precision}, {'compiled' if config.compile else 'uncompiled'}"


if __name__ == "__main__":
    measure_network("choices", __doc__, measure)
