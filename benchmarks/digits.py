"""The digits run for three seeds, each beside the control: the same recipe on Gaussian noise.

`make bench`, or `python -m benchmarks.digits`; writes results/digits.json.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.harness import distil_and_evaluate, gaussian_noise, run_chain, summary, write_result
from pipeline.run import load_run
from pipeline.world import World, open_world

SEEDS = (0, 1, 2)
CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def measure(seed: int, folder: str, world: World) -> dict[str, float]:
    """One seed from nothing: figures of the chain, the student of noise, and seconds in all."""
    overrides = [f"seed={seed}", f"name=seed{seed}", f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/out"]
    config = load_run(CONFIG, overrides)
    started = time.perf_counter()
    figures = run_chain(config, world)
    chain_s = time.perf_counter() - started
    control = distil_and_evaluate(config, gaussian_noise(config), world)
    return {**figures, "noise_student_top1": control.student["top1"], "chain_s": chain_s}


def main() -> None:
    """Measure all seeds and print the summary."""
    with open_world() as world, tempfile.TemporaryDirectory() as folder:
        runs = [measure(seed, folder, world) for seed in SEEDS]
        found = summary(runs)
        path = write_result("digits", {"command": "python -m benchmarks.digits", "seeds": SEEDS, **found}, world)
    for name, figures in found.items():
        print(f"{name}: {figures['mean']:.4f} +- {figures['deviation']:.4f}")
    print(path)


if __name__ == "__main__":
    main()
