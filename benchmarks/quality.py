"""Whether the fast loop's images are as good as the reference loop's: both networks' scores on CIFAR-10 images.

    python -m benchmarks.quality --set teacher.weights=FILE verifier.weights=FILE
    torchrun --nproc-per-node 2 -m benchmarks.quality ...          the seeds shared among two workers

The same starts, views, terms and steps, from configs/cifar10_resnet20.yaml, for the reference loop and for the fast
loop in bfloat16 and in single precision; every image is judged by the teacher and by the verifier after it is rounded
to bytes. Writes results/quality-DEVICE.json: means over the images of a seed, and over the seeds.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
from torch import Generator, Tensor

from benchmarks.harness import open_benchmark, print_result, summary
from benchmarks.reference import reference_invert
from pipeline.evaluation.scores import score
from pipeline.run import load_run
from pipeline.runtime.acceleration import Precision
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session, open_session
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import open_objective

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_resnet20.yaml"
VERDICTS = ("teacher_top1", "teacher_probability", "verifier_top1", "verifier_probability")
Verdicts = dict[str, float]


def scores(session: Session, images: Tensor, labels: Tensor) -> Verdicts:
    """Means over uint8 images (N, C, H, W) with labels (N,)."""
    device = session.context.device
    metadata = score(images.to(device), labels.to(device), session.teacher, session.verifier)
    return {name: statistics.fmean(float(one[name]) for one in metadata) for name in VERDICTS}


def measure(session: Session, inversion: InversionConfig, seeds: range, batches: int) -> dict[str, list[Verdicts]]:
    """The scores on the images of each loop, by its name, for each seed."""
    images, device = session.config.images, session.context.device
    size = (images.height, images.width)
    labels = torch.arange(session.config.synthesis.batch_size, device=device) % images.num_classes

    def over_seeds(images_of: Callable[[Generator], Tensor]) -> list[Verdicts]:
        generators = [[make_generator(seed, "quality", batch) for batch in range(batches)] for seed in seeds]
        made = [torch.cat([images_of(generator) for generator in of_seed]) for of_seed in generators]
        return [scores(session, of_seed, labels.repeat(batches)) for of_seed in made]

    def reference(generator: Generator) -> Tensor:
        return reference_invert(session.teacher, labels, size, inversion, generator)[1]

    def fast(precision: Precision) -> list[Verdicts]:
        config = replace(inversion, precision=precision)
        with open_objective(session.teacher, None, config) as objective:
            return over_seeds(lambda generator: invert(objective, labels, size, config, generator).images)

    return {"reference": over_seeds(reference), "bfloat16": fast("bfloat16"), "float32": fast("float32")}


def gathered(context: DistributedContext, own: dict[str, list[Verdicts]]) -> dict[str, list[Verdicts]]:
    """What all workers found."""
    parts = [own] * context.size
    if context.size > 1:
        torch.distributed.all_gather_object(parts, own, group=context.wait_group)
    return {name: [one for part in parts for one in part[name]] for name in own}


def main() -> None:
    """Measure on the present device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config = load_run(CONFIG, arguments.set)
    with open_benchmark() as context, open_session(config, context) as session:
        phases = (PhaseConfig(steps=arguments.steps),)
        inversion = replace(session.config.synthesis.inversion, phases=phases)
        own = range(context.rank, arguments.seeds, context.size)
        found = gathered(context, measure(session, inversion, own, arguments.batches))
        pairs = zip(found["bfloat16"], found["reference"], strict=True)
        differences = [{name: ours[name] - theirs[name] for name in VERDICTS} for ours, theirs in pairs]
        if context.is_main_process:
            result = {
                "command": "python -m benchmarks.quality",
                "steps": arguments.steps,
                "batches": arguments.batches,
                **{name: summary(runs) for name, runs in found.items()},
                "bfloat16_minus_reference": summary(differences),
            }
            print_result(f"quality-{context.device.type}", result, context)
        context.barrier()


if __name__ == "__main__":
    main()
