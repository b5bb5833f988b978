"""Predict what a run takes on this machine: hours, memory, disk and files, from a few steps of everything."""

from dataclasses import asdict

from pipeline.estimate import estimate
from pipeline.runtime.files import write_json
from pipeline.session import Session, check_inputs
from stages import teacher
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Print the prediction and keep it as `estimate.json`, which the report compares with what the run took."""
    config, world = session.config, session.world
    check_inputs(config)
    teacher.main(session)
    world.barrier()
    found = estimate(session)
    world.barrier()
    if world.is_leader:
        write_json(config.estimate_path, asdict(found))
        print(f"estimate: {config.name}, {world.size} worker(s) on {world.device}", *found.lines(), sep="\n  ")


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
