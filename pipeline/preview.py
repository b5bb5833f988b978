"""What a run would make: each output, and how much of it exists; nothing is computed or changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.given_sets import read_given
from pipeline.data.remote import is_remote
from pipeline.data.shards import is_packed
from pipeline.distillation.state import state_path
from pipeline.identity import existing_evaluation, is_finished, is_student_finished, teacher_identity
from pipeline.run import RunConfig
from pipeline.sets import next_set
from pipeline.synthesis.plan import plan_batches
from pipeline.synthesis.store import missing_batches

# Rounds that are listed one by one.
MAX_ROUNDS_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output of a stage: what it is, in words, and whether it exists whole."""

    stage: str
    text: str
    exists: bool = False

    def line(self) -> str:
        """The output in one line."""
        return f"{self.stage:<12}{self.text}{' (exists)' * self.exists}"


def planned_outputs(config: RunConfig) -> Iterator[str]:
    """One line for each of `list_outputs`; raises what it raises."""
    return (output.line() for output in list_outputs(config))


def list_outputs(config: RunConfig) -> Iterator[Output]:
    """The outputs of the run, in the order in which `make` makes them; of many rounds, the first ones.

    Raises ConfigError when a finished network, or images of a teacher that exists, have another identity: the stage
    would refuse to continue.
    """
    training = config.teacher_training
    if training is None:
        yield Output(stage="teacher", text=f"{config.teacher.source} with weights {config.teacher.weights}")
    else:
        path = config.trained_teacher_path
        text = f"{path}: {training.steps:,} steps of {training.batch_size} images"
        yield _network_output("teacher", text, path, partial(_is_teacher_finished, config))
    has_teacher = training is None or config.trained_teacher_path.exists()
    is_known = has_teacher and _has_images(config)
    for r in range(min(config.num_rounds, MAX_ROUNDS_LISTED)):
        yield from _given_outputs(config) if config.distill.shards else [_set_output(config, r, has_teacher)]
        path, steps = config.student_path(r), config.distill_steps(r)
        is_trained = partial(is_student_finished, config, r) if is_known else None
        yield _network_output("distill", f"{path}: steps {steps.start:,} to {steps.stop:,}", path, is_trained)
    if config.num_rounds > MAX_ROUNDS_LISTED:
        yield Output(stage="...", text=f"and {config.num_rounds - MAX_ROUNDS_LISTED:,} more rounds like these")
    last, report = config.num_rounds - 1, config.checkpoints / "report.html"
    text = f"{config.evaluation_path(last)}: on {config.data.test}"
    is_evaluated = is_known and existing_evaluation(config, last) is not None
    yield Output(stage="evaluate", text=text, exists=is_evaluated)
    yield Output(stage="report", text=str(report), exists=report.exists())


def _given_outputs(config: RunConfig) -> Iterator[Output]:
    for name in config.distill.shards:
        folder = config.given_folder(name)
        if is_remote(name) and not is_packed(folder):
            text = f"nothing: {name} is fetched into {folder}"
        else:
            text = f"nothing: {read_given(name, folder)['num_images']:,} images exist in {folder}"
        yield Output(stage="synthesize", text=text)


def _has_images(config: RunConfig) -> bool:
    """Whether all sets of `distill.shards` are here; a dry run fetches none, so it cannot know their students."""
    return all(is_packed(config.given_folder(name)) for name in config.distill.shards)


def _set_output(config: RunConfig, round_index: int, has_teacher: bool) -> Output:
    folder, steps = config.round_folder(round_index), config.synthesis.growth
    plans = [plan_batches(step, config.student_images.num_classes, config.seed, round_index) for step in steps]
    num_images = sum(len(spec.labels) for specs in plans for spec in specs)
    num_batches, num_steps = sum(map(len, plans)), config.synthesis.inversion.num_steps
    text = f"{folder}: {num_images:,} images in {num_batches:,} batches of {num_steps:,} steps"
    first = None if is_packed(folder) else (steps[0], folder)
    missing = next_set(config, round_index) if has_teacher else first
    if missing is None:
        return Output(stage="synthesize", text=text, exists=True)
    i = steps.index(missing[0])
    num_missing = len(missing_batches(missing[1], plans[i])) + sum(map(len, plans[i + 1 :]))
    num_done = num_batches - num_missing
    progress = f" ({num_done:,} of {num_batches:,} batches exist)" if num_done else ""
    return Output(stage="synthesize", text=f"{text}{progress}")


def _is_teacher_finished(config: RunConfig) -> bool:
    return is_finished(config.trained_teacher_path, teacher_identity(config))


def _network_output(stage: str, text: str, path: Path, is_trained: Callable[[], bool] | None) -> Output:
    """A network that is trained (raises ConfigError if it has another identity), or has a state to resume from.

    `is_trained` is called only if the network exists: the identity of a teacher reads, and may download, its training
    images. None: it cannot be known.
    """
    if is_trained is None:
        return Output(stage=stage, text=text)
    if path.exists() and is_trained():
        return Output(stage=stage, text=text, exists=True)
    progress = f" (resumes from {state_path(path).name})" if state_path(path).exists() else ""
    return Output(stage=stage, text=f"{text}{progress}")
