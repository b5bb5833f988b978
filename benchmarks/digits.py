"""The digits run for three seeds, each beside the control: the same recipe on Gaussian noise.

`make bench`, or `python -m benchmarks.digits`; writes results/digits.json.
"""

import json
import tempfile
import time
from pathlib import Path

from benchmarks.harness import distil_and_evaluate, gaussian_noise, mean_and_deviation, write_result
from pipeline.run import load_run
from pipeline.session import open_session
from pipeline.world import World, open_world
from stages import chain

SEEDS = (0, 1, 2)
CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def measure(seed: int, folder: str, world: World) -> dict[str, float]:
    """One seed from nothing: top-1 of teacher, student and the student of noise; seconds of the chain."""
    overrides = [f"seed={seed}", f"name=seed{seed}", f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/out"]
    config = load_run(CONFIG, overrides)
    started = time.perf_counter()
    with open_session(config, world) as session:
        chain.main(session)
        chain_s = time.perf_counter() - started
        teacher = session.teacher
    report = json.loads(config.evaluation_path(config.synthesis.rounds - 1).read_text())
    control = distil_and_evaluate(config, gaussian_noise(teacher, config, config.synthesis.num_images), world)
    return {
        "teacher_top1": report["teacher"]["top1"],
        "student_top1": report["student"]["top1"],
        "noise_student_top1": control.student["top1"],
        "student_parameters": report["student"]["parameters"] / report["teacher"]["parameters"],
        "chain_s": chain_s,
    }


def main() -> None:
    """Measure all seeds and print the summary."""
    with open_world() as world, tempfile.TemporaryDirectory() as folder:
        runs = [measure(seed, folder, world) for seed in SEEDS]
        summary = {name: mean_and_deviation([run[name] for run in runs]) for name in runs[0]}
        path = write_result("digits", {"command": "python -m benchmarks.digits", "seeds": SEEDS, **summary}, world)
    for name, figures in summary.items():
        print(f"{name}: {figures['mean']:.4f} +- {figures['deviation']:.4f}")
    print(path)


if __name__ == "__main__":
    main()
