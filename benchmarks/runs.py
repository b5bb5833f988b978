"""A whole run from nothing for some seeds, each beside the control: the same recipe of distillation on Gaussian noise.

    python -m benchmarks.runs [--config configs/digits.yaml] [--seeds 0 1 2] [--set KEY=VALUE ...]
    torchrun --nproc-per-node 2 -m benchmarks.runs --folder FOLDER ...         with two workers

Outputs go to an empty FOLDER, by default to one that is removed again. Writes results/CONFIG.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.harness import distil_and_evaluate, gaussian_noise, open_benchmark, run_chain, summary, write_result
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext

CONFIGS = Path(__file__).parent.parent / "configs"


def measure(arguments: argparse.Namespace, seed: int, folder: Path, context: DistributedContext) -> dict[str, float]:
    """One seed: figures of the chain, the student of noise, and seconds in all."""
    places = [f"name=seed{seed}", f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/checkpoints"]
    config = load_run(arguments.config, [*arguments.set, f"seed={seed}", *places])
    context.barrier()
    started = time.perf_counter()
    figures = run_chain(config, context)
    chain_s = time.perf_counter() - started
    control = distil_and_evaluate(config, gaussian_noise(config), context)
    noise = {"noise_student_top1": control.student["top1"], "noise_agreement": control.agreement}
    return {**figures, **noise, "chain_s": chain_s}


def main() -> None:
    """Measure all seeds and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "digits.yaml", help="the run's YAML file")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=None, help="an empty folder, needed by several workers")
    arguments = parser.parse_args()
    if arguments.folder and arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"--folder {arguments.folder} is not empty; the time of what it holds would not be counted")
    with open_benchmark() as context, tempfile.TemporaryDirectory() as temporary:
        if context.size > 1 and arguments.folder is None:
            parser.error("several workers need a --folder in common")
        folder = arguments.folder or Path(temporary)
        found = summary([measure(arguments, seed, folder, context) for seed in arguments.seeds])
        if context.is_main_process:
            head = {"command": "python -m benchmarks.runs", "workers": context.size, "seeds": arguments.seeds}
            path = write_result(arguments.config.stem, {**head, **found}, context)
            for name, figures in found.items():
                print(f"{name}: {figures['mean']:.4f} +- {figures['deviation']:.4f}")
            print(path)


if __name__ == "__main__":
    main()
