"""Invert the teacher into the class-organized synthetic images of one round."""

from typing import Any

from pipeline.data.shards import check_sizes, is_packed, pack, read_manifest, remove_parts
from pipeline.identity import require_same_images, synthesis_identity, write_identity
from pipeline.run import RunConfig
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.session import Session
from pipeline.synthesis.batches import make_batches
from pipeline.synthesis.plan import plan_batches
from pipeline.synthesis.store import BatchStore, manifest_facts, missing_batches
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Make the missing batches of a round, by default of the first incomplete round, and pack them into shards."""
    config, context = session.config, session.context
    if round_index is None:
        round_index = context.broadcast(_next_round(config))
    folder, identity = config.round_folder(round_index), synthesis_identity(config, round_index)
    require_same_images(folder, identity)
    specs = plan_batches(config.synthesis, config.student_images.num_classes, config.seed, round_index)
    # All ranks use what rank 0 sees: on a network file system, they may see other files for a while.
    was_packed, missing = context.broadcast((is_packed(folder), missing_batches(folder, specs)))
    if missing:
        objective = session.objective(round_index)  # before anything is written: the networks may not load
        store = BatchStore(folder=folder, config=config.synthesis, scorers=session.scorers)
        if context.is_main_process:
            write_identity(folder, identity, config)
        context.barrier()  # the identity comes before the first part
        own_specs = missing[context.rank :: context.size]
        progress = _progress(session, round_index, len(own_specs), len(specs) - len(missing))
        with open_recorder(config.metrics_path(context.rank), progress, visible=context.is_main_process) as recorder:
            make_batches(objective, own_specs, store, recorder, context)
        context.barrier()
    if context.is_main_process:
        if not was_packed:
            facts = manifest_facts(config.synthesis, config.student_images)
            facts |= {"round": round_index, "teacher": config.teacher.source, **_classes(config)}
            pack(folder, [spec.index for spec in specs], identity, facts)
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
        remove_parts(folder)
        scores = ", ".join(f"{name} {value:.1%}" for name, value in manifest["scores"].items())
        note = " (up to date)" if was_packed else ""
        print(f"synthesize: {manifest['num_images']:,} images in {folder}; {scores}{note}")
    context.barrier()


def _classes(config: RunConfig) -> dict[str, Any]:
    """For each label of the images, the teacher's label and the title of the class."""
    labels = config.class_labels or range(config.images.num_classes)
    return {"classes": list(labels), "class_titles": list(config.class_titles)}


def _next_round(config: RunConfig) -> int:
    rounds = range(config.synthesis.rounds)
    return next((r for r in rounds if not is_packed(config.round_folder(r))), rounds[-1])


def _progress(session: Session, round_index: int, num_own_batches: int, num_finished_batches: int) -> Progress:
    """The steps of this rank: those of its own batches, and its share of the batches that exist."""
    num_steps = session.config.synthesis.inversion.num_steps
    done = num_finished_batches // session.context.size * num_steps
    total = done + num_own_batches * num_steps
    return Progress(stage="synthesize", total=total, unit="steps", done=done, round_index=round_index)


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
