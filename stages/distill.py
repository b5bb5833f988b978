"""Distill a student from the teacher's outputs for the synthetic images of all rounds so far."""

from pipeline.copies import finish_network
from pipeline.data.remote import fetch_set, is_remote
from pipeline.data.shards import is_packed
from pipeline.distillation.state import TrainState, state_path
from pipeline.distillation.train import train
from pipeline.identity import is_student_finished, require_student, student_identity
from pipeline.models.checkpoint import save_classifier
from pipeline.run import RunConfig
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.session import Session
from stages.stage import announced_stop


def main(session: Session, round_index: int | None = None) -> None:
    """Train the student of a round, by default of the next one, on the images of all rounds up to it."""
    config, context = session.config, session.context
    config.distill.require_even_shares(context.size)
    if round_index is None:
        round_index = context.broadcast(_next_round(config))
    fetch_sets(session)
    session.pool.require_complete(round_index)
    path, identity = config.student_path(round_index), student_identity(config, round_index)
    if context.broadcast(is_student_finished(config, round_index)):
        if context.is_main_process:
            finish_network(session.object_store, path)  # the process may have been killed after it wrote the network
            print(f"distill: {path} is up to date")
        return
    if round_index:
        require_student(config, round_index - 1)
    images, steps = session.pool.images(round_index), config.distill_steps(round_index)
    student = session.student(round_index)
    state = TrainState.open(student, config.distill, state_path(path), identity, steps)
    if session.object_store is not None:
        state.after_write = session.object_store.push_or_warn
    context.require_same(str(state.step), f"the step of {state.path}; is it on a file system that all ranks see?")
    if context.is_main_process and state.step > steps.start:
        print(f"distill: resumed at step {state.step:,}", flush=True)
    done = state.step - steps.start
    progress = Progress(stage="distill", total=len(steps), unit="steps", done=done, round_index=round_index)
    with (
        open_recorder(config.metrics_path(context.rank), progress, context, session.sinks) as recorder,
        announced_stop("distill", state),
    ):

        def on_step(step: int, figures: dict[str, float]) -> None:
            # The figures of all ranks are equal; their resources are not.
            recorder.log(step, figures if context.is_main_process else {}, done=step + 1 - steps.start)

        train(state, session.distillation, images, context, on_step)
    if context.is_main_process:
        save_classifier(path, student, config.student, config.student_images, identity)
        finish_network(session.object_store, path, is_new=True)
        print(f"distill: {path}, {len(images.labels):,} synthetic images, steps {steps.start:,} to {steps.stop:,}")
    context.barrier()


def fetch_sets(session: Session) -> None:
    """Fetch the sets of `distill.shards` that have an address; those that are there are not looked up again."""
    config, context = session.config, session.context
    if context.is_main_process:
        for url in filter(is_remote, config.distill.shards):
            folder = config.given_folder(url)
            if not is_packed(folder):
                print(f"distill: fetching {url} into {folder}", flush=True)
                print(f"distill: fetched {fetch_set(url, folder) / 2**20:,.1f} MiB", flush=True)
    context.barrier()


def _next_round(config: RunConfig) -> int:
    """The first round with shards and without a student, else the last one with shards."""
    if config.distill.shards:
        return 0
    packed = [r for r in range(config.synthesis.rounds) if is_packed(config.round_folder(r))]
    without_student = [r for r in packed if not config.student_path(r).exists()]
    return (without_student or packed[-1:] or [0])[0]
