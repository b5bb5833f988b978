"""Train a teacher on real images where there is no pretrained one."""

from pipeline.data.image_sets import load_images
from pipeline.data.loader import held_limit_bytes, hold_in_memory, num_bytes
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import Task, label_objective
from pipeline.distillation.train import train
from pipeline.evaluation.evaluate import EvaluationConfig, evaluate
from pipeline.identity import is_finished, state_path, teacher_identity
from pipeline.models.checkpoint import save_classifier
from pipeline.models.classifier import build_classifier
from pipeline.runtime.distributed import World
from pipeline.runtime.files import write_json
from pipeline.runtime.recorder import open_recorder
from pipeline.runtime.seeds import derive_seed
from pipeline.session import Session
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Write `teacher.safetensors` and, beside it, its accuracy on the test images."""
    config = session.config
    if not session.world.is_leader:
        return
    training, device = config.teacher_training, session.world.device
    if training is None:
        print(f"teacher: {config.teacher.source} with weights {config.teacher.weights}, nothing to train")
        return
    path, identity = config.trained_teacher_path, teacher_identity(config)
    if is_finished(path, identity):
        print(f"teacher: {path} is up to date")
        return
    images = load_images(config.data, "train", config.images)
    if num_bytes(images) <= held_limit_bytes(training.memory_gib, device):
        images = hold_in_memory(images, device)
    teacher = build_classifier(config.teacher, config.images, seed=derive_seed(config.seed, "teacher/weights"))
    state = TrainState.open(teacher.to(device), training, state_path(path), identity)
    if state.step:
        print(f"teacher: resumed at step {state.step:,}", flush=True)
    task = Task(
        teacher,
        label_objective(training),
        training,
        num_classes=config.images.num_classes,
        seed=config.seed,
        purpose="teacher",
    )
    with open_recorder(
        config.metrics_path(), "teacher", total=training.steps, done=state.step, unit="steps"
    ) as recorder:
        train(state, task, images, training, World(device=device), on_step=recorder.log)
    test = load_images(config.data, "test", config.images)
    judged = EvaluationConfig(batch_size=config.evaluation.batch_size)  # a teacher answers for all its classes
    report = evaluate(teacher, teacher, test, config.images.num_classes, judged, device)
    write_json(path.with_suffix(".json"), {"test": config.data.test, "num_images": report.num_images, **report.teacher})
    save_classifier(path, teacher, config.teacher, identity)
    state_path(path).unlink(missing_ok=True)
    print(f"teacher: {path}, top-1 {report.teacher['top1']:.2%} on {report.num_images} test images")


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
