"""Distil a student from the teacher's logits on the synthetic images of all rounds so far."""

from pipeline.data.shards import MANIFEST
from pipeline.distillation.state import TrainState
from pipeline.distillation.train import train
from pipeline.identity import is_finished, require_student, state_path, student_identity
from pipeline.models.checkpoint import save_classifier
from pipeline.run import RunConfig
from pipeline.runtime.recorder import open_recorder
from pipeline.session import Session
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Train the student of a round on the pool of shards up to it, starting from the student before."""
    config, world = session.config, session.world
    if round_index is None:
        round_index = world.broadcast(_next_round(config))
    session.check_shards(round_index)
    path, identity = config.student_path(round_index), student_identity(config, round_index)
    if world.broadcast(is_finished(path, identity)):
        if world.is_leader:
            print(f"distill: {path} is up to date")
        return
    if round_index:
        require_student(config, round_index - 1)
    images, steps = session.pool(round_index), config.distill_steps(round_index)
    student = session.student(round_index)
    state = TrainState.open(student, config.distill, state_path(path), identity, steps.start)
    world.require_same(str(state.step), f"the step of {state.path}; is it on a file system that all of them see?")
    if world.is_leader and state.step > steps.start:
        print(f"distill: resumed at step {state.step:,}", flush=True)
    with open_recorder(
        config.metrics_path(world.rank),
        "distill",
        total=config.distill.steps,
        done=state.step,
        unit="steps",
        visible=world.is_leader,
        round_index=round_index,
    ) as recorder:
        on_step = recorder.log if world.is_leader else None  # the workers' figures are the same
        train(state, session.distillation, images, config.distill, world, until=steps.stop, on_step=on_step)
    if world.is_leader:
        save_classifier(path, student, config.student, identity)
        state_path(path).unlink(missing_ok=True)
        print(f"distill: {path}, {len(images.labels):,} synthetic images, steps {steps.start:,} to {steps.stop:,}")
    world.barrier()


def _next_round(config: RunConfig) -> int:
    """The first round with shards but no student; with nothing to do, the last one that has shards."""
    packed = [r for r in range(config.synthesis.rounds) if (config.round_folder(r) / MANIFEST).exists()]
    waiting = [r for r in packed if not config.student_path(r).exists()]
    return (waiting or packed[-1:] or [0])[0]


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
