"""Whether the images of the fast loop are as good as those of the reference loop: scores of CIFAR-10 images.

    python -m benchmarks.quality --set teacher.weights=FILE verifier.weights=FILE
    torchrun --nproc-per-node 2 -m benchmarks.quality ...          two processes share the seeds

The reference loop and the fast loop, in bfloat16 and in single precision, have the same initial noise, views, terms and
steps, from configs/cifar10_resnet20.yaml. The teacher and the verifier score every image after it is quantized to
uint8. Writes results/quality-DEVICE.json: means over the images of a seed, and over the seeds.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from benchmarks.harness import PIXELS, REPOSITORY, add_overrides, make_parser, open_benchmark, print_result, summary
from benchmarks.reference import reference_invert
from pipeline.evaluation.scores import score
from pipeline.run import load_run
from pipeline.runtime.acceleration import Precision
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session, open_session
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Networks, open_objective

CONFIG = REPOSITORY / "configs" / "cifar10_resnet20.yaml"
SCORES = ("teacher_top1", "teacher_probability", "verifier_top1", "verifier_probability")
MeanScores = dict[str, float]


def mean_scores(session: Session, images: Tensor, labels: Tensor) -> MeanScores:
    """Means over uint8 images (N, C, H, W) with labels (N,)."""
    scores = score(images, labels, session.scorers)
    return {name: statistics.fmean(float(image_scores[name]) for image_scores in scores) for name in SCORES}


def measure(
    session: Session, inversion: InversionConfig, seeds: range, num_batches: int
) -> dict[str, list[MeanScores]]:
    """The mean scores of the images of each loop, by its name, for each seed."""
    images, teacher = session.config.images, session.teacher
    labels = torch.arange(session.config.synthesis.batch_size, device=teacher.device) % images.num_classes

    def over_seeds(make_batch: Callable[[Generator], Tensor]) -> list[MeanScores]:
        scores = []
        for seed in seeds:
            batches = [make_batch(make_generator(seed, "quality", i)) for i in range(num_batches)]
            scores.append(mean_scores(session, torch.cat(batches), labels.repeat(num_batches)))
        return scores

    def reference(generator: Generator) -> Tensor:
        return reference_invert(teacher, images.size, labels, inversion, generator)[1]

    def fast(precision: Precision) -> list[MeanScores]:
        config = replace(inversion, precision=precision)
        with open_objective(Networks(teacher=teacher), config, images.size) as objective:
            return over_seeds(lambda generator: invert(objective, labels, config, generator).images)

    return {"reference": over_seeds(reference), "bfloat16": fast("bfloat16"), "float32": fast("float32")}


def gather(context: DistributedContext, own: dict[str, list[MeanScores]]) -> dict[str, list[MeanScores]]:
    """The mean scores of all ranks."""
    of_ranks = [own] * context.size
    if context.size > 1:
        dist.all_gather_object(of_ranks, own, group=context.wait_group)
    return {name: [scores for of_rank in of_ranks for scores in of_rank[name]] for name in own}


def main() -> None:
    """Measure on the devices of all ranks."""
    parser = make_parser(__doc__)
    add_overrides(parser)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config = load_run(CONFIG, [*PIXELS, *arguments.set])
    with open_benchmark() as context, open_session(config, context) as session:
        phases = (PhaseConfig(steps=arguments.steps),)
        inversion = replace(session.config.synthesis.inversion, phases=phases)
        own_seeds = range(context.rank, arguments.seeds, context.size)
        scores = gather(context, measure(session, inversion, own_seeds, arguments.batches))
        pairs = zip(scores["bfloat16"], scores["reference"], strict=True)
        differences = [{name: fast[name] - reference[name] for name in SCORES} for fast, reference in pairs]
        if context.is_main_process:
            result = {
                "command": "python -m benchmarks.quality",
                "steps": arguments.steps,
                "batches": arguments.batches,
                **{name: summary(of_seeds) for name, of_seeds in scores.items()},
                "bfloat16_minus_reference": summary(differences),
            }
            print_result(f"quality-{context.device.type}", result, context)
        context.barrier()


if __name__ == "__main__":
    main()
