"""Seconds from the start of `make synthesize` to the first step, with an empty compiler's cache and with a warm one.

    python -m benchmarks.restart [--config configs/cifar10_resnet20.yaml] [--set KEY=VALUE ...]

The command is killed after its first step. Writes results/restart-CONFIG-DEVICE.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import open_benchmark, print_result
from pipeline.run import RunConfig, load_run

PROJECT = Path(__file__).parent.parent
STAGE = [sys.executable, "-m", "stages.synthesize"]
WARM_STARTS = 3


def first_step_s(config: RunConfig, command: list[str], cache: str) -> float:
    """Seconds until the stage has written its first line of metrics; it is killed then."""
    metrics = config.metrics_path()
    metrics.unlink(missing_ok=True)
    started = time.perf_counter()
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment)
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise ValueError(f"the stage ended with {process.returncode} before its first step")
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure one config; its teacher must be there, or is trained first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=PROJECT / "configs" / "digits.yaml")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.set, f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/out"]
        config = load_run(arguments.config, overrides)
        options = ["--config", str(arguments.config), "--set", *overrides]
        subprocess.run([sys.executable, "-m", "stages.teacher", *options], cwd=PROJECT, check=True)
        command, cache = [*STAGE, *options], f"{folder}/cache"
        cold_s = first_step_s(config, command, cache)
        warm_s = [first_step_s(config, command, cache) for _ in range(WARM_STARTS)]
        result = {"command": "python -m benchmarks.restart", "config": arguments.config.name}
        name = f"restart-{arguments.config.stem}-{context.device.type}"
        print_result(name, {**result, "cold_s": cold_s, "warm_s": warm_s}, context)


if __name__ == "__main__":
    main()
