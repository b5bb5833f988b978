"""The whole run in one process: teacher, then synthesis and distillation round by round, evaluation, report."""

from pipeline.session import Session, check_inputs
from pipeline.sets import require_same_outputs
from stages import distill, evaluate, report, synthesize, teacher
from stages.stage import share_outputs


def main(session: Session, round_index: int | None = None) -> None:
    """Run every stage; finished outputs are only checked. With `round_index`, stop after that round."""
    config, context = session.config, session.context
    check_inputs(config, context.size)
    if config.distill.shards:
        distill.fetch_sets(session)
        session.pool.require_complete(0)
    teacher.main(session)
    context.barrier()
    share_outputs(session)
    last = config.num_rounds - 1 if round_index is None else round_index
    require_same_outputs(config, last)
    for r in range(last + 1):
        synthesize.main(session, r)
        share_outputs(session)
        distill.main(session, r)
        context.barrier()
        share_outputs(session)
    evaluate.main(session, last)
    report.main(session, last)
