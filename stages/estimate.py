"""Estimate the time, memory and disk of a run on this machine from a few steps of each phase."""

from dataclasses import asdict

from pipeline.estimate import estimate
from pipeline.runtime.files import write_json
from pipeline.session import Session, check_inputs
from stages import distill, teacher
from stages.stage import counted


def main(session: Session, round_index: int | None = None) -> None:
    """Print the estimate and write it to `estimate.json`; the report compares it with the run."""
    config, context = session.config, session.context
    check_inputs(config, context.size)
    if config.distill.shards:
        distill.fetch_sets(session)
        session.pool.require_complete(0)
    teacher.main(session)
    context.barrier()
    result = estimate(session)
    context.barrier()
    if context.is_main_process:
        write_json(config.estimate_path, asdict(result))
        processes = counted(context.size, "process")
        print(f"estimate: {config.name}, {processes} on {context.device}", *result.lines(), sep="\n  ")
