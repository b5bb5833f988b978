"""Distil a student from the teacher's logits on the synthetic images of all rounds so far."""

from pipeline.config import fingerprint
from pipeline.data import ShardSet, hold_in_memory
from pipeline.models import Classifier, build_classifier, load_frozen, read_description, save_classifier
from pipeline.recorder import open_recorder
from pipeline.run import RunConfig, load_student, refuse_other, student_identity, synthesis_identity
from pipeline.shards import MANIFEST, ShardError, read_manifest, verify
from pipeline.train import distillation_objective, num_steps, train
from pipeline.world import World, derive_seed
from stages.command import run_stage


def main(config: RunConfig, world: World, round_index: int | None = None) -> None:
    """Train the student of a round on the pool of shards up to it, starting from the student before."""
    if not world.is_leader:
        return
    if round_index is None:
        round_index = _next_round(config)
    _check_shards(config, round_index)
    path, identity = config.student_path(round_index), student_identity(config, round_index)
    state_path = path.with_suffix(".state")
    if path.exists():
        refuse_other(str(path), read_description(path)["identity"], identity)
        state_path.unlink(missing_ok=True)  # a kill can fall between writing the student and this
        print(f"distill: {path} is up to date")
        return
    teacher = load_frozen(config.teacher_model, config.images, world.device)
    student = _start(config, round_index, teacher).to(world.device)
    folders = [config.round_folder(r) for r in range(round_index + 1)]
    images = hold_in_memory(ShardSet(folders), world.device)
    steps = num_steps(config.distill, len(images.labels))
    with open_recorder(
        config.metrics_path(), "distill", total=steps, unit="steps", round_index=round_index
    ) as recorder:
        train(
            student,
            images,
            config.images.num_classes,
            distillation_objective(teacher, config.distill),
            config.distill,
            config.seed,
            f"distill/{round_index}",
            state_path,
            fingerprint(identity),
            recorder.log,
        )
    save_classifier(path, student, config.student, identity)
    state_path.unlink(missing_ok=True)
    print(f"distill: {path}, {len(images.labels):,} synthetic images, {steps:,} steps")


def _next_round(config: RunConfig) -> int:
    """The first round with shards but no student; with nothing to do, the last one that has shards."""
    packed = [r for r in range(config.synthesis.rounds) if (config.round_folder(r) / MANIFEST).exists()]
    waiting = [r for r in packed if not config.student_path(r).exists()]
    return (waiting or packed[-1:] or [0])[0]


def _check_shards(config: RunConfig, round_index: int) -> None:
    """Raise when shards of the pool are missing, altered, or made with another configuration."""
    for r in range(round_index + 1):
        folder = config.round_folder(r)
        refuse_other(str(folder), read_manifest(folder)["identity"], synthesis_identity(config, r))
        problems = verify(folder)
        if problems:
            raise ShardError(f"{'; '.join(problems)}. Remove {folder} and run `make synthesize` again")


def _start(config: RunConfig, round_index: int, teacher: Classifier) -> Classifier:
    if round_index:
        return load_student(config, round_index - 1, teacher)
    seed = derive_seed(config.seed, "student/weights")
    return build_classifier(config.student, config.images, seed=seed, default_normalisation=teacher.normalisation)


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
