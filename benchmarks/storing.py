"""What the synthesize stage costs beside its inversions: encoding, scoring, writing and packing the images.

    python -m benchmarks.storing [--config configs/cifar10_resnet20.yaml] [--set KEY=VALUE ...]

The stage and its inversions alone are timed in turn, in one process: one round of four batches. Storing the last batch
overlaps with no inversion, nor does packing. Writes results/storing-CONFIG-DEVICE.json.
"""

import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.harness import REPOSITORY, add_overrides, make_parser, open_benchmark, print_result, timed
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.session import Session, open_session
from pipeline.synthesis.batches import invert_batch
from pipeline.synthesis.plan import plan_batches
from stages import synthesize, teacher

NUM_BATCHES, TURNS = 4, 3


def invert_alone(session: Session) -> None:
    """Invert all batches of round 0, one after the other, and drop their images."""
    config, objective = session.config, session.objective(0)
    for spec in plan_batches(config.synthesis, config.student_images.num_classes, config.seed, 0):
        invert_batch(objective, spec, config.synthesis.inversion)


def load(path: Path, overrides: list[str], folder: str) -> RunConfig:
    """The config, with one round of `NUM_BATCHES` batches and its outputs in `folder`."""
    batch_size = load_run(path, overrides).synthesis.batch_size
    outputs = [f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/checkpoints"]
    one_round = ["synthesis.rounds=1", "synthesis.inversion.terms.competition=0"]
    return load_run(path, [*overrides, *outputs, *one_round, f"synthesis.num_images={NUM_BATCHES * batch_size}"])


def measure(config: RunConfig, context: DistributedContext) -> dict[str, list[float]]:
    """Seconds of the stage and of its inversions alone, in turn; a teacher without weights is trained first."""
    stage_s, inversion_s = [], []
    with open_session(config, context) as session:
        teacher.main(session)
        for turn in range(TURNS + 1):
            seconds, _ = timed(context, synthesize.main, session, 0)
            alone_s, _ = timed(context, invert_alone, session)
            shutil.rmtree(config.round_folder(0))
            if turn:  # the first turn compiles and warms up
                stage_s.append(seconds)
                inversion_s.append(alone_s)
    return {"stage_s": stage_s, "inversion_s": inversion_s}


def main() -> None:
    """Measure one config."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "digits.yaml")
    add_overrides(parser)
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as folder:
        seconds = measure(load(arguments.config, arguments.set, folder), context)
        shares = [alone / stage for alone, stage in zip(seconds["inversion_s"], seconds["stage_s"], strict=True)]
        result = {
            "command": "python -m benchmarks.storing",
            "config": arguments.config.name,
            "num_batches": NUM_BATCHES,
            **seconds,
            "overhead": 1 - statistics.median(shares),
        }
        print_result(f"storing-{arguments.config.stem}-{context.device.type}", result, context)


if __name__ == "__main__":
    main()
