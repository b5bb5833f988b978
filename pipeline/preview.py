"""What a run would make: each output, and how much of it exists; nothing is computed or changed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.identity import check_folder, student_identity, synthesis_identity, teacher_identity
from pipeline.models.checkpoint import read_description
from pipeline.run import RunConfig
from pipeline.runtime.fingerprint import require_same_identity
from pipeline.synthesis.plan import plan_batches
from pipeline.synthesis.store import missing_batches

# Rounds that are listed one by one.
MAX_ROUNDS_LISTED = 8


def planned_outputs(config: RunConfig) -> Iterator[str]:
    """One line for each output of the run, in the order in which `make` makes them.

    Raises ConfigError when an output has another identity: the stage would refuse to continue.
    """
    training = config.teacher_training
    if training is None:
        yield f"teacher     {config.teacher.source} with weights {config.teacher.weights}"
    else:
        path = config.trained_teacher_path
        done = _network_exists(path, teacher_identity(config)) if path.exists() else False
        yield f"teacher     {path}: {training.steps:,} steps of {training.batch_size} images{_state(done)}"
    has_teacher = training is None or config.trained_teacher_path.exists()
    for r in range(min(config.synthesis.rounds, MAX_ROUNDS_LISTED)):
        yield _synthesis_line(config, r, has_teacher)
        path, steps = config.student_path(r), config.distill_steps(r)
        done = has_teacher and path.exists() and _network_exists(path, student_identity(config, r))
        yield f"distill     {path}: steps {steps.start:,} to {steps.stop:,}{_state(done)}"
    if config.synthesis.rounds > MAX_ROUNDS_LISTED:
        yield f"...         and {config.synthesis.rounds - MAX_ROUNDS_LISTED:,} more rounds like these"
    yield f"evaluate    {config.evaluation_path(config.synthesis.rounds - 1)}: on {config.data.test}"
    yield f"report      {config.checkpoints / 'report.html'}"


def _synthesis_line(config: RunConfig, round_index: int, has_teacher: bool) -> str:
    folder, inversion = config.round_folder(round_index), config.synthesis.inversion
    if has_teacher:
        check_folder(folder, synthesis_identity(config, round_index))
    specs = plan_batches(config.synthesis, config.images.num_classes, config.seed, round_index)
    missing = missing_batches(folder, specs)
    num_images = sum(len(spec.labels) for spec in specs)
    size = f"{num_images:,} images in {len(specs):,} batches of {inversion.num_steps:,} steps"
    num_done = len(specs) if missing is None else len(specs) - len(missing)
    partly = f" ({num_done:,} batches exist)" if missing is not None and num_done else ""
    return f"synthesize  {folder}: {size}{_state(missing is None)}{partly}"


def _network_exists(path: Path, identity: Mapping[str, Any]) -> bool:
    require_same_identity(str(path), read_description(path)["identity"], identity)
    return True


def _state(is_done: bool) -> str:
    return " (exists)" if is_done else ""
