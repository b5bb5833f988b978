"""Whether the fast loop's images are as good as the reference loop's: both networks' verdicts on CIFAR-10 images.

    python -m benchmarks.quality --set teacher.weights=FILE verifier.weights=FILE

The same starts, views, terms and steps for both, from configs/cifar10_resnet20.yaml; every image is judged by the
teacher and by the verifier after it is rounded to bytes. Writes results/quality-DEVICE.json.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import print_result
from benchmarks.reference import reference_invert
from pipeline.evidence import judge
from pipeline.invert import PhaseConfig, invert
from pipeline.run import load_run
from pipeline.session import Session, open_session
from pipeline.world import make_generator, open_world

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_resnet20.yaml"
VERDICTS = ("teacher_top1", "teacher_probability", "verifier_top1", "verifier_probability")


def verdicts(session: Session, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Means over uint8 images (N, C, H, W) with labels (N,), on the session's device."""
    evidence = judge(images, labels, session.teacher, session.verifier)
    return {name: statistics.fmean(float(one[name]) for one in evidence) for name in VERDICTS}


def main() -> None:
    """Measure on the present device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, default=2)
    arguments = parser.parse_args()
    config = load_run(CONFIG, arguments.set)
    inversion = replace(config.synthesis.inversion, phases=(PhaseConfig(steps=arguments.steps),))
    size, labels = (config.images.height, config.images.width), torch.arange(config.synthesis.batch_size)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "reference": []}
    with open_world() as world, open_session(config, world) as session:
        labels = (labels % config.images.num_classes).to(world.device)
        for batch in range(arguments.batches):
            start = ("quality", batch)
            ours = invert(session.objective(0), labels, size, inversion, make_generator(config.seed, *start)).images
            _, theirs = reference_invert(session.teacher, labels, size, inversion, make_generator(config.seed, *start))
            found["ours"].append(verdicts(session, ours.to(world.device), labels))
            found["reference"].append(verdicts(session, theirs, labels))
        means = {name: {v: statistics.fmean(f[v] for f in runs) for v in VERDICTS} for name, runs in found.items()}
        result = {"command": "python -m benchmarks.quality", "steps": arguments.steps, "batches": arguments.batches}
        print_result(f"quality-{world.device.type}", {**result, **means}, world)


if __name__ == "__main__":
    main()
