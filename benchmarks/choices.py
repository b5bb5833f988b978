"""Whether the choices of `auto` are the fastest: inversion compiled and not, in bfloat16 and in float32.

    python -m benchmarks.choices --steps 5             the options of benchmarks.inversion

The four settings are measured in turn. Writes results/choices-NETWORK-DEVICE.json.
"""

import argparse
import statistics
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any

from benchmarks.harness import timed
from benchmarks.inversion import build_config, make_labels, measure_network, open_network
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import invert

TURNS = 3


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Images x steps per second of the four settings, the one that `auto` chooses, and its rate over the best rate."""
    auto = build_config(arguments, context)
    configs = [
        replace(auto, compile=compile, precision=precision, cuda_graphs=compile and auto.cuda_graphs)
        for compile, precision in product((True, False), ("bfloat16", "float32"))
    ]
    labels = make_labels(arguments, context)
    rates: dict[str, list[float]] = {_name(config): [] for config in configs}
    with ExitStack() as resources:
        objectives = [resources.enter_context(open_network(arguments, config, context)) for config in configs]
        for turn in range(TURNS + 1):
            for objective, config in zip(objectives, configs, strict=True):
                seconds, _ = timed(context, invert, objective, labels, config, make_generator(turn, "views"))
                if turn:  # the first turn compiles and warms up
                    rates[_name(config)].append(arguments.batch_size * arguments.steps / seconds)
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
