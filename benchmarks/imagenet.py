"""A trial of an ImageNet recipe: one student, from synthetic images or from a control, scored on real images.

    python -m benchmarks.imagenet recipe --set ...                             the images of the run
    python -m benchmarks.imagenet photographs --images tar:FILE --set ...      real photographs: a yardstick
    python -m benchmarks.imagenet noise --images noise --set ...               white noise
    python -m benchmarks.imagenet start --images start --set ...               noise as inversion starts from
    torchrun --nproc-per-node 2 -m benchmarks.imagenet ...                     in two processes

The distillation is that of the config for all of them, with as many images as the run has (of photographs, with as many
as there are). Writes results/imagenet/NAME.json: the config, the machine, the commit, the seconds, the figures.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    WHITE,
    add_overrides,
    distill_and_evaluate,
    make_parser,
    noise_images,
    open_benchmark,
    options_of,
    print_result,
    run_chain,
)
from pipeline.data.image_sets import ImageSet, load_images
from pipeline.resolve import resolve
from pipeline.run import RunConfig, load_run
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import DistributedContext

SYNTHETIC, NOISE, START = "synthetic", "noise", "start"


def control_images(config: RunConfig, source: str) -> ImageSet:
    """White noise, the initial noise of the run, or the real images of the classes of the run in KIND:NAME."""
    if source == NOISE:
        return noise_images(config, WHITE)
    if source == START:
        return noise_images(config, config.synthesis.inversion.init_noise)
    if source == config.data.test:
        raise ValueError(f"--images {source} are the images of the test; a student of them is no yardstick")
    return load_images(replace(config.data, test=source), "test", config.images, config.class_labels)


def measure(config: RunConfig, source: str, context: DistributedContext) -> dict[str, Any]:
    """Accuracies, agreement, sizes and times of student and teacher; with synthetic images, also their scores."""
    if source == SYNTHETIC:
        return run_chain(config, context)
    images = control_images(config, source)
    started = time.perf_counter()
    report = distill_and_evaluate(config, images, context)
    return {
        **report.row(),
        "num_training_images": len(images.labels),
        "distill_and_evaluate_s": time.perf_counter() - started,
    }


def main() -> None:
    """Measure one trial; write and print it."""
    parser = make_parser(__doc__)
    parser.add_argument("name", help="name of the result")
    parser.add_argument("--config", type=Path, default=Path("configs/imagenette.yaml"))
    parser.add_argument(
        "--images", default=SYNTHETIC, help=f"{SYNTHETIC}, {NOISE}, {START}, or real images as KIND:NAME"
    )
    add_overrides(parser)
    arguments = parser.parse_args()
    config = load_run(arguments.config, [f"name={arguments.name}", *arguments.set])
    with open_benchmark() as context:
        figures = measure(config, arguments.images, context)
        if context.is_main_process:
            options = {**options_of(arguments), "processes": context.size}
            resolved = to_plain(resolve(config, context.device))
            result = {"options": options, "figures": figures, "config": resolved}
            print_result(f"imagenet/{arguments.name}", result, context)


if __name__ == "__main__":
    main()
