"""Train a teacher on real images if the config names no pretrained one."""

from pipeline.copies import finish_network
from pipeline.data.image_sets import ImageSet, load_images
from pipeline.data.loader import cache_limit_bytes, check_images, num_bytes, preload
from pipeline.distillation.state import TrainState, state_path
from pipeline.distillation.task import Task, build_label_loss
from pipeline.distillation.train import train
from pipeline.evaluation.evaluate import measure
from pipeline.identity import is_finished, teacher_identity
from pipeline.models.checkpoint import load_classifier, save_classifier
from pipeline.models.classifier import Classifier, build_classifier
from pipeline.run import RunConfig
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.files import is_whole, write_json
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.runtime.seeds import derive_seed
from pipeline.session import Session
from stages.stage import announced_stop


def main(session: Session, round_index: int | None = None) -> None:
    """Write `teacher.safetensors` and, beside it, the teacher's accuracy on the test images."""
    config = session.config
    if not session.context.is_main_process:
        return
    training, device = config.teacher_training, session.context.device
    if training is None:
        print(f"teacher: {config.teacher.source} with weights {config.teacher.weights}, nothing to train")
        return
    path, identity = config.trained_teacher_path, teacher_identity(config)
    if is_finished(path, identity):
        if not is_whole(path.with_suffix(".json")):  # missing or damaged, which costs seconds
            _write_accuracy(session, load_classifier(path, config.teacher.source).to(device), _test_images(config))
        finish_network(session.object_store, path)  # the process may have been killed after it wrote the network
        print(f"teacher: {path} is up to date")
        return
    images, test = load_images(config.data, "train", config.images), _test_images(config)
    for image_set in (images, test):
        check_images(image_set)
    if num_bytes(images) <= cache_limit_bytes(training.memory_gib, device):
        images = preload(images, device)
    teacher = build_classifier(config.teacher, config.images, seed=derive_seed(config.seed, "teacher/weights"))
    state = TrainState.open(teacher.to(device), training, state_path(path), identity)
    if session.object_store is not None:
        state.after_write = session.object_store.push_or_warn
    if state.step:
        print(f"teacher: resumed at step {state.step:,}", flush=True)
    task = Task(teacher, build_label_loss(training), training, config.seed, "teacher")
    progress = Progress(stage="teacher", total=training.steps, unit="steps", done=state.step)
    with (
        open_recorder(config.metrics_path(), progress, session.context, session.sinks) as recorder,
        announced_stop("teacher", state),
    ):
        train(state, task, images, DistributedContext(device=device), recorder.log)
    top1 = _write_accuracy(session, teacher, test)
    names = config.data.read_class_names(config.images.num_classes)
    teacher.class_titles = tuple(map(str, range(config.images.num_classes))) if names is None else names.titles
    save_classifier(path, teacher, config.teacher, config.images, identity)
    finish_network(session.object_store, path, is_new=True)
    print(f"teacher: {path}, top-1 {top1:.2%} on {len(test.labels)} test images")


def _test_images(config: RunConfig) -> ImageSet:
    return load_images(config.data, "test", config.images, config.class_labels)


def _write_accuracy(session: Session, teacher: Classifier, test: ImageSet) -> float:
    """Write what a trained teacher scores on the test images of the run's classes; returns its top-1."""
    config = session.config
    restricted = Classifier(teacher.network, teacher.normalization, teacher.num_classes, config.class_labels)
    metrics = measure(restricted.to(session.context.device), test, config.evaluation)
    facts = {
        "test": config.data.test,
        "classes": config.class_labels,
        "num_images": len(test.labels),
        "parameters": teacher.num_parameters,
    }
    write_json(config.trained_teacher_path.with_suffix(".json"), {**facts, **metrics})
    return float(metrics["top1"])
