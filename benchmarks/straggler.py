"""Seconds of synthesis by three processes, and by these and a fourth at a tenth of their speed.

    python -m benchmarks.straggler [--repeats 3]

The processes mostly sleep (benchmarks/sleepy_network.py), so a few cores are enough for them. The time is that from the
first step to the manifest. Writes results/straggler-DEVICE.json.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import REPOSITORY, make_parser, open_benchmark, print_result
from benchmarks.sleepy_network import sleepy_teacher
from pipeline.run import RunConfig, load_run

NUM_BATCHES, BATCH_SIZE, STEPS, PASS_S, NUM_FAST = 24, 10, 40, 0.05, 3
# Seconds between two looks at the files of the run.
POLL_S = 0.02


def plain_config(folder: Path, name: str) -> dict[str, Any]:
    """The run as plain YAML data; rank `NUM_FAST` is slow."""
    inversion = {"phases": [{"steps": STEPS}], "jitter_px": 1, "terms": {"classification": 1.0}, "log_every": 1}
    plain = {"precision": "float32", "compile": False}
    return {
        "name": name,
        "images": {"channels": 1, "height": 8, "width": 8, "num_classes": 10},
        "data": {"test": "sklearn:digits"},
        "teacher": sleepy_teacher(folder, pass_s=PASS_S, slow_rank=NUM_FAST, slow_pass_s=10 * PASS_S),
        "student": {"source": "cifar10:resnet8"},
        "synthesis": {
            "num_images": NUM_BATCHES * BATCH_SIZE,
            "batch_size": BATCH_SIZE,
            "inversion": {**inversion, **plain},
        },
        "distill": {"steps": 1, "batch_size": 12, "lr": 0.1, **plain},
        "shards_dir": str(folder / "shards"),
        "checkpoints_dir": str(folder / "checkpoints"),
    }


def measure(folder: Path, num_processes: int, repeat: int) -> float:
    """Seconds of the synthesis of a new run."""
    path = folder / f"{num_processes}-{repeat}.yaml"
    path.write_text(yaml.safe_dump(plain_config(folder, path.stem)))
    options = ["--config", str(path), "--processes", str(num_processes), "--device", "cpu"]
    return synthesis_s(load_run(path), [sys.executable, "-m", "stages", "synthesize", *options])


def synthesis_s(config: RunConfig, command: list[str]) -> float:
    """Seconds from the first line of metrics to the manifest; raises ValueError when the command fails."""
    process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics, manifest, times = config.metrics_path(), config.round_folder(0) / "manifest.json", []
    for file in (metrics, manifest):
        while not (file.exists() and file.stat().st_size):
            if process.poll() is not None:
                raise ValueError(f"the command ended with {process.returncode}")
            time.sleep(POLL_S)
        times.append(time.perf_counter())
    if process.wait():
        raise ValueError(f"the command ended with {process.returncode}")
    return times[1] - times[0]


def main() -> None:
    """Measure both alternately; print and write their ratio."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds: dict[int, list[float]] = {NUM_FAST: [], NUM_FAST + 1: []}
        for repeat in range(arguments.repeats):
            for num_processes, values in seconds.items():
                values.append(measure(folder, num_processes, repeat))
        fast, with_straggler = map(statistics.median, seconds.values())
        result = {
            "command": "python -m benchmarks.straggler",
            "batches": NUM_BATCHES,
            "three_s": seconds[NUM_FAST],
            "three_and_a_straggler_s": seconds[NUM_FAST + 1],
            "ratio": with_straggler / fast,
        }
        print_result(f"straggler-{context.device.type}", result, context)


if __name__ == "__main__":
    main()
