"""Whole runs of several seeds, each beside the control: the same distillation on Gaussian noise.

    python -m benchmarks.runs [--config configs/digits.yaml] [--seeds 0 1 2] [--set KEY=VALUE ...]
    torchrun --nproc-per-node 2 -m benchmarks.runs --folder FOLDER ...         in two processes

Outputs go to an empty FOLDER, by default a temporary one. Writes results/CONFIG.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.harness import (
    REPOSITORY,
    WHITE,
    add_overrides,
    distill_and_evaluate,
    make_parser,
    noise_images,
    open_benchmark,
    run_chain,
    summary,
    write_result,
)
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext


def measure(arguments: argparse.Namespace, seed: int, folder: Path, context: DistributedContext) -> dict[str, float]:
    """One seed: the figures of the run, those of the student of noise, and the seconds of the whole run."""
    outputs = [f"name=seed{seed}", f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/checkpoints"]
    config = load_run(arguments.config, [*arguments.set, f"seed={seed}", *outputs])
    context.barrier()
    started = time.perf_counter()
    figures = run_chain(config, context)
    chain_s = time.perf_counter() - started
    control = distill_and_evaluate(config, noise_images(config, WHITE), context)
    noise = {"noise_student_top1": control.student["top1"], "noise_agreement": control.agreement}
    return {**figures, **noise, "chain_s": chain_s}


def main() -> None:
    """Measure all seeds, and write and print the summary."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "digits.yaml")
    add_overrides(parser)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=None, help="an empty folder; several processes need it")
    arguments = parser.parse_args()
    if arguments.folder and arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"--folder {arguments.folder} is not empty; the time of what it contains would not be counted")
    with open_benchmark() as context, tempfile.TemporaryDirectory() as temporary:
        if context.size > 1 and arguments.folder is None:
            parser.error("several processes need a common --folder")
        folder = arguments.folder or Path(temporary)
        table = summary([measure(arguments, seed, folder, context) for seed in arguments.seeds])
        if context.is_main_process:
            head = {"command": "python -m benchmarks.runs", "processes": context.size, "seeds": arguments.seeds}
            path = write_result(arguments.config.stem, {**head, **table}, context)
            for name, figures in table.items():
                print(f"{name}: {figures['mean']:.4f} +- {figures['deviation']:.4f}")
            print(path)


if __name__ == "__main__":
    main()
