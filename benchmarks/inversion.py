"""Speed of the inversion loop beside the reference loop: same network, batch, steps and loss terms, in turn A B A B.

    python -m benchmarks.inversion                     ResNet-20 at 32x32, batch 128 (on CUDA: ResNet-34, batch 256)
    python -m benchmarks.inversion --source python:FILE.py:Network --weights FILE --size_px 224 --batch_size 16

Writes results/inversion-NETWORK-DEVICE.json.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.harness import compared, make_parser, open_benchmark, options_of, print_result, timed
from benchmarks.reference import reference_invert
from pipeline.models.classifier import Classifier, build_classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.runtime.acceleration import PIXELS_WORTH_COMPILING, resolve_acceleration
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Networks, Objective, open_objective
from pipeline.synthesis.terms import TermConfig

TURNS = 5
# Batches of random images, and images in each, for the running statistics of a network without weights.
STATISTICS_BATCHES, STATISTICS_BATCH_SIZE = 10, 32
Measure = Callable[[argparse.Namespace, DistributedContext], dict[str, Any]]
NORMALIZATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONFIG = InversionConfig(
    phases=(PhaseConfig(steps=20),),
    terms=TermConfig(feature_norm=0.1, tv_l2=1e-3),
    lr=0.1,
    jitter_px=2,
    flip=True,
)


def build_config(arguments: argparse.Namespace, context: DistributedContext) -> InversionConfig:
    """The inversion for the options of the command line; `auto` is resolved for this machine."""
    phases = (PhaseConfig(steps=arguments.steps),)
    config = replace(CONFIG, phases=phases, log_every=arguments.steps)
    if arguments.no_cuda_graphs:
        config = replace(config, cuda_graphs=False)
    return resolve_acceleration(config, context.device, PIXELS_WORTH_COMPILING, "the benchmark")


def build_images(arguments: argparse.Namespace) -> ImageConfig:
    """Shape and classes of the images."""
    size_px = arguments.size_px
    return ImageConfig(channels=3, height=size_px, width=size_px, num_classes=arguments.num_classes)


def load_teacher(arguments: argparse.Namespace, context: DistributedContext) -> Classifier:
    """The frozen network on the device; without weights, its running statistics are those of random images."""
    model = ModelConfig(source=arguments.source, options=arguments.options, weights=arguments.weights, **NORMALIZATION)
    images = build_images(arguments)
    teacher = build_classifier(model, images, seed=0).to(context.device)
    if arguments.weights is None:
        generator = make_generator(0, "statistics")
        with torch.no_grad():
            for _ in range(STATISTICS_BATCHES):
                pixels = torch.rand(STATISTICS_BATCH_SIZE, *images.shape, generator=generator)
                teacher.train()(pixels.to(context.device))
    return teacher.freeze()


def open_network(
    arguments: argparse.Namespace, config: InversionConfig, context: DistributedContext
) -> AbstractContextManager[Objective]:
    """The objective of `config` for a network of its own."""
    return open_objective(Networks(teacher=load_teacher(arguments, context)), config, build_images(arguments).size)


def make_labels(arguments: argparse.Namespace, context: DistributedContext) -> Tensor:
    """Balanced labels (N,) of one batch, on the device."""
    return torch.arange(arguments.batch_size, device=context.device) % arguments.num_classes


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Images x steps per second of both loops, measured in turn, and the last loss of each."""
    config, labels = build_config(arguments, context), make_labels(arguments, context)
    reference_teacher, image_size = load_teacher(arguments, context), build_images(arguments).size
    rates: dict[str, list[float]] = {"ours": [], "reference": []}
    losses: dict[str, list[float]] = {"ours": [], "reference": []}
    with open_network(arguments, config, context) as objective:
        for turn in range(TURNS + 1):
            ours_s, ours = timed(context, invert, objective, labels, config, make_generator(turn, "views"))
            reference_s, (totals, _) = timed(
                context, reference_invert, reference_teacher, image_size, labels, config, make_generator(turn, "views")
            )
            if turn == 0:  # compiles and warms up
                first_s = ours_s
                continue
            for name, seconds, loss in (
                ("ours", ours_s, ours.trace[-1].sum().item()),
                ("reference", reference_s, totals[-1]),
            ):
                rates[name].append(arguments.batch_size * arguments.steps / seconds)
                losses[name].append(loss)
    return {
        "precision": config.precision,
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        **compared(rates, "image_steps_per_s"),
        "first_run_s": first_s,
        "final_loss": losses,
    }


def measure_network(benchmark: str, description: str | None, measure: Measure) -> None:
    """The command line of a benchmark of one network.

    Writes results/BENCHMARK-NETWORK-LABEL.json. The default label is the type of the device.
    """
    with open_benchmark() as context:
        on_cuda = context.device.type == "cuda"
        parser = make_parser(description)
        parser.add_argument("--source", default="cifar10:resnet34" if on_cuda else "cifar10:resnet20")
        parser.add_argument("--options", type=yaml.safe_load, default={}, help="of the network, e.g. '{shortcut: A}'")
        parser.add_argument("--weights", default=None, help="weights of the network; without them they are random")
        parser.add_argument("--num_classes", type=int, default=10)
        parser.add_argument("--size_px", type=int, default=32)
        parser.add_argument("--batch_size", type=int, default=256 if on_cuda else 128)
        parser.add_argument("--steps", type=int, default=100 if on_cuda else 20)
        parser.add_argument("--label", default=context.device.type, help="the machine, in the name of the result")
        parser.add_argument("--no_cuda_graphs", action="store_true", help="launch the kernels of our step one by one")
        arguments = parser.parse_args()
        figures = measure(arguments, context)
        result = {"command": f"python -m benchmarks.{benchmark}", **options_of(arguments), **figures}
        print_result(f"{benchmark}-{arguments.source.rpartition(':')[2]}-{arguments.label}", result, context)


if __name__ == "__main__":
    measure_network("inversion", __doc__, measure)
