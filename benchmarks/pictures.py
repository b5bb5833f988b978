"""What the pictures of synthesis cost: the stage with and without them.

    python -m benchmarks.pictures [--config configs/digits.yaml] [--set KEY=VALUE ...]

Both are timed in turn, in one process: one round of four batches, on the clock and in seconds of all cores, which other
programs change less. `first_picture_s` is the time from the start of the stage to its first picture, in the first turn,
which compiles. Writes results/pictures-CONFIG-DEVICE.json.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import REPOSITORY, add_overrides, make_parser, open_benchmark, print_result, timed
from benchmarks.storing import NUM_BATCHES, load
from pipeline.run import RunConfig
from pipeline.runtime.distributed import DistributedContext
from pipeline.session import open_session
from stages import synthesize, teacher

TURNS = 5


def measure(config: RunConfig, context: DistributedContext) -> dict[str, Any]:
    """Seconds of the stage with and without pictures, in turn; a teacher without weights is trained first."""
    seconds: dict[str, list[float]] = {f"{name}_{unit}": [] for name in ("with", "without") for unit in ("s", "core_s")}
    pictures = synthesize._live_pictures, synthesize._finish_pictures
    no_pictures = (lambda *arguments: None,) * 2
    with open_session(config, context) as session:
        teacher.main(session)
        write, written_at = session.sinks._write, []
        session.sinks._write = lambda *arguments: (written_at.append(time.perf_counter()), write(*arguments))
        started_at = time.perf_counter()
        for turn in range(TURNS + 1):
            for name, (live, finish) in (("with", pictures), ("without", no_pictures)):
                with patch.multiple(synthesize, _live_pictures=live, _finish_pictures=finish):
                    core_s = time.process_time()
                    stage_s, _ = timed(context, synthesize.main, session, 0)
                    core_s = time.process_time() - core_s
                shutil.rmtree(config.round_folder(0))
                if turn:  # the first turn compiles and warms up
                    seconds[f"{name}_s"].append(stage_s)
                    seconds[f"{name}_core_s"].append(core_s)
    return {"first_picture_s": written_at[0] - started_at, **seconds}


def main() -> None:
    """Measure one config."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "digits.yaml")
    add_overrides(parser)
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as folder:
        seconds = measure(load(arguments.config, arguments.set, folder), context)
        medians = {name: statistics.median(seconds[name]) for name in seconds if name != "first_picture_s"}
        result = {
            "command": "python -m benchmarks.pictures",
            "config": arguments.config.name,
            "num_batches": NUM_BATCHES,
            **seconds,
            "cost": medians["with_s"] / medians["without_s"] - 1,
            "core_cost": medians["with_core_s"] / medians["without_core_s"] - 1,
        }
        print_result(f"pictures-{arguments.config.stem}-{context.device.type}", result, context)


if __name__ == "__main__":
    main()
