"""What a run would make: each output, and how much of it exists; nothing is computed or changed."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.shards import is_packed
from pipeline.distillation.state import state_path
from pipeline.identity import (
    existing_evaluation,
    is_finished,
    require_same_images,
    student_identity,
    synthesis_identity,
    teacher_identity,
)
from pipeline.run import RunConfig
from pipeline.synthesis.plan import plan_batches
from pipeline.synthesis.store import missing_batches

# Rounds that are listed one by one.
MAX_ROUNDS_LISTED = 8


def planned_outputs(config: RunConfig) -> Iterator[str]:
    """One line for each output of the run, in the order in which `make` makes them.

    Raises ConfigError when a finished network, or images of a teacher that exists, have another identity: the stage
    would refuse to continue.
    """
    training = config.teacher_training
    if training is None:
        yield f"teacher     {config.teacher.source} with weights {config.teacher.weights}"
    else:
        path = config.trained_teacher_path
        progress = _progress(path, partial(teacher_identity, config))
        yield f"teacher     {path}: {training.steps:,} steps of {training.batch_size} images{progress}"
    has_teacher = training is None or config.trained_teacher_path.exists()
    for r in range(min(config.synthesis.rounds, MAX_ROUNDS_LISTED)):
        yield _synthesis_line(config, r, has_teacher)
        path, steps = config.student_path(r), config.distill_steps(r)
        progress = _progress(path, partial(student_identity, config, r)) if has_teacher else ""
        yield f"distill     {path}: steps {steps.start:,} to {steps.stop:,}{progress}"
    if config.synthesis.rounds > MAX_ROUNDS_LISTED:
        yield f"...         and {config.synthesis.rounds - MAX_ROUNDS_LISTED:,} more rounds like these"
    last, report = config.synthesis.rounds - 1, config.checkpoints / "report.html"
    is_evaluated = has_teacher and existing_evaluation(config, last) is not None
    yield f"evaluate    {config.evaluation_path(last)}: on {config.data.test}{' (exists)' * is_evaluated}"
    yield f"report      {report}{' (exists)' * report.exists()}"


def _synthesis_line(config: RunConfig, round_index: int, has_teacher: bool) -> str:
    folder, inversion = config.round_folder(round_index), config.synthesis.inversion
    if has_teacher:
        require_same_images(folder, synthesis_identity(config, round_index))
    specs = plan_batches(config.synthesis, config.student_images.num_classes, config.seed, round_index)
    num_images, num_done = sum(len(spec.labels) for spec in specs), len(specs) - len(missing_batches(folder, specs))
    line = f"synthesize  {folder}: {num_images:,} images in {len(specs):,} batches of {inversion.num_steps:,} steps"
    if is_packed(folder):
        return f"{line} (exists)"
    return f"{line} ({num_done:,} of {len(specs):,} batches exist)" if num_done else line


def _progress(path: Path, identity: Callable[[], Mapping[str, Any]]) -> str:
    """Whether a network is trained (raises ConfigError if it has another identity), or has a state to resume from.

    The identity is taken only of what exists: that of a teacher reads, and may download, its training images.
    """
    if path.exists() and is_finished(path, identity()):
        return " (exists)"
    return f" (resumes from {state_path(path).name})" if state_path(path).exists() else ""
