"""Seconds from the start of `make synthesize` to the first step, with an empty and with a warm cache of the compiler.

    python -m benchmarks.restart [--config configs/cifar10_resnet20.yaml] [--set KEY=VALUE ...]

The stage is killed after its first step. Writes results/restart-CONFIG-DEVICE.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import REPOSITORY, add_overrides, make_parser, open_benchmark, print_result
from pipeline.run import RunConfig, load_run

WARM_STARTS = 3
# Seconds between two looks at the file of metrics.
POLL_S = 0.01


def first_step_s(config: RunConfig, command: list[str], cache_folder: str) -> float:
    """Seconds until the stage has written its first line of metrics; then it is killed.

    Raises ValueError when the stage ends before.
    """
    metrics = config.metrics_path()
    metrics.unlink(missing_ok=True)
    started = time.perf_counter()
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache_folder}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise ValueError(f"the stage ended with {process.returncode} before its first step")
            time.sleep(POLL_S)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure one config; a teacher without weights is trained first."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "digits.yaml")
    add_overrides(parser)
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.set, f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/checkpoints"]
        config = load_run(arguments.config, overrides)
        options = ["--config", str(arguments.config.resolve()), *overrides]
        subprocess.run([sys.executable, "-m", "stages", "teacher", *options], cwd=REPOSITORY, check=True)
        command, cache_folder = [sys.executable, "-m", "stages", "synthesize", *options], f"{folder}/cache"
        cold_s = first_step_s(config, command, cache_folder)
        warm_s = [first_step_s(config, command, cache_folder) for _ in range(WARM_STARTS)]
        result = {"command": "python -m benchmarks.restart", "config": arguments.config.name}
        name = f"restart-{arguments.config.stem}-{context.device.type}"
        print_result(name, {**result, "cold_s": cold_s, "warm_s": warm_s}, context)


if __name__ == "__main__":
    main()
