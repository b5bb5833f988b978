"""The whole run in one process: teacher, then synthesis and distillation round by round, evaluation, report."""

from pipeline.run import RunConfig, check_inputs
from pipeline.world import World
from stages import distill, evaluate, report, synthesize, teacher
from stages.command import run_stage


def main(config: RunConfig, world: World, round_index: int | None = None) -> None:
    """Run every stage; what is finished already is only checked. With `round_index`, stop after that round."""
    check_inputs(config)
    teacher.main(config, world)
    world.barrier()
    last = config.synthesis.rounds - 1 if round_index is None else round_index
    for r in range(last + 1):
        synthesize.main(config, world, r)
        distill.main(config, world, r)
        world.barrier()
    evaluate.main(config, world, last)
    report.main(config, world, last)


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
