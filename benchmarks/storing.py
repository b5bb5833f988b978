"""What the synthesize stage costs beside its inversions: encoding, judging, writing and packing what they make.

    python -m benchmarks.storing [--config configs/cifar10_resnet20.yaml] [--set KEY=VALUE ...]

The stage is timed beside its inversions alone, in turn, in one process: one round of four batches, of which the last
overlaps nothing, and packing neither. Writes results/storing-CONFIG-DEVICE.json.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.harness import open_benchmark, print_result, timed
from pipeline.run import load_run
from pipeline.session import Session, open_session
from pipeline.synthesis.invert import invert
from pipeline.synthesis.plan import plan_batches
from stages import synthesize, teacher

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"
NUM_BATCHES, TURNS = 4, 3


def invert_alone(session: Session) -> None:
    """All batches of round 0, one after the other, their images dropped."""
    config, device = session.config, session.context.device
    for spec in plan_batches(config.synthesis, config.images.num_classes, config.seed, 0):
        invert(
            session.objective(0),
            torch.tensor(spec.labels, device=device),
            (config.images.height, config.images.width),
            config.synthesis.inversion,
            torch.Generator().manual_seed(spec.seed),
        )


def main() -> None:
    """Measure one config; its teacher must be there, or is trained first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory() as folder:
        places = [f"shards_dir={folder}/shards", f"checkpoints_dir={folder}/out"]
        batch_size = load_run(arguments.config, arguments.set).synthesis.batch_size
        one_round = ["synthesis.rounds=1", "synthesis.inversion.terms.competition=0"]
        num_images = f"synthesis.num_images={NUM_BATCHES * batch_size}"
        config = load_run(arguments.config, [*arguments.set, *places, *one_round, num_images])
        stage_s, inversion_s = [], []
        with open_session(config, context) as session:
            teacher.main(session)
            for turn in range(TURNS + 1):
                stage, _ = timed(context, synthesize.main, session, 0)
                inversion, _ = timed(context, invert_alone, session)
                shutil.rmtree(config.round_folder(0))
                if turn:  # the first turn compiles and warms up
                    stage_s.append(stage)
                    inversion_s.append(inversion)
        overhead = 1 - statistics.median(alone / all_s for alone, all_s in zip(inversion_s, stage_s, strict=True))
        result = {
            "command": "python -m benchmarks.storing",
            "config": arguments.config.name,
            "num_batches": NUM_BATCHES,
            "stage_s": stage_s,
            "inversion_s": inversion_s,
            "overhead": overhead,
        }
        print_result(f"storing-{arguments.config.stem}-{context.device.type}", result, context)


if __name__ == "__main__":
    main()
