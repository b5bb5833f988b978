"""Distil a student from the teacher's logits on the synthetic images of all rounds so far."""

from pathlib import Path

from pipeline.config import refuse_other
from pipeline.data import ShardSet, hold_in_memory
from pipeline.models import load_frozen, save_classifier
from pipeline.recorder import open_recorder
from pipeline.run import (
    RunConfig,
    build_student,
    is_finished,
    load_student,
    state_path,
    student_identity,
    synthesis_identity,
)
from pipeline.shards import MANIFEST, ShardError, check_sizes, read_manifest, verify
from pipeline.train import Task, TrainState, distillation_objective, num_steps, train
from pipeline.world import World
from stages.command import run_stage


def main(config: RunConfig, world: World, round_index: int | None = None) -> None:
    """Train the student of a round on the pool of shards up to it, starting from the student before."""
    if not world.is_leader:
        return
    if round_index is None:
        round_index = _next_round(config)
    folders = [config.round_folder(r) for r in range(round_index + 1)]
    for r, folder in enumerate(folders):
        manifest = read_manifest(folder)
        refuse_other(str(folder), manifest["identity"], synthesis_identity(config, r))
        check_sizes(folder, manifest)
    path, identity = config.student_path(round_index), student_identity(config, round_index)
    if is_finished(path, identity):
        print(f"distill: {path} is up to date")
        return
    _verify(folders)
    teacher = load_frozen(config.teacher_model, config.images, world.device)
    student = (
        load_student(config, round_index - 1) if round_index else build_student(config, teacher.normalisation)
    ).to(world.device)
    state = TrainState.open(student, config.distill, state_path(path), identity)
    task = Task(
        images=hold_in_memory(ShardSet(folders), world.device),
        num_classes=config.images.num_classes,
        objective=distillation_objective(teacher, config.distill),
        seed=config.seed,
        purpose=f"distill/{round_index}",
    )
    count = len(task.images.labels)
    steps = num_steps(config.distill, count)
    with open_recorder(
        config.metrics_path(), "distill", total=steps, done=state.step, unit="steps", round_index=round_index
    ) as recorder:
        train(state, task, config.distill, recorder.log)
    save_classifier(path, student, config.student, identity)
    state_path(path).unlink(missing_ok=True)
    print(f"distill: {path}, {count:,} synthetic images, {steps:,} steps")


def _next_round(config: RunConfig) -> int:
    """The first round with shards but no student; with nothing to do, the last one that has shards."""
    packed = [r for r in range(config.synthesis.rounds) if (config.round_folder(r) / MANIFEST).exists()]
    waiting = [r for r in packed if not config.student_path(r).exists()]
    return (waiting or packed[-1:] or [0])[0]


def _verify(folders: list[Path]) -> None:
    """Raise ShardError when a shard of the pool is not as it was written."""
    for folder in folders:
        if problems := verify(folder):
            raise ShardError(f"{'; '.join(problems)}; remove {folder} and run `make synthesize` again")


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
