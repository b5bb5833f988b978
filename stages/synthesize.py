"""Invert the teacher into the class-organized synthetic images of one round."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.data.growth import join_growth, remove_joined
from pipeline.data.repair import Repair, plan_repair, write_repaired
from pipeline.data.shards import is_packed, pack, read_manifest, remove_parts
from pipeline.data.stored_sets import exchange_parts, push_set
from pipeline.identity import synthesis_identity
from pipeline.run import RunConfig, resolved_yaml
from pipeline.runtime.distributed import LOST_AFTER
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.hardware import device_name
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.session import Session
from pipeline.sets import next_set, restore_texts, steps_of_set, write_identity
from pipeline.synthesis.batches import Monitor, make_batches
from pipeline.synthesis.config import SynthesisConfig
from pipeline.synthesis.pictures import (
    PREVIEW,
    LivePictures,
    RoundTitles,
    draw_grid,
    evolution_name,
    grid_name,
    has_pictures,
    picture_path,
)
from pipeline.synthesis.plan import BatchSpec, plan_batches, run_step
from pipeline.synthesis.store import BatchStore, manifest_facts, missing_batches, remove_damaged_parts


def main(session: Session, round_index: int | None = None) -> None:
    """Make the missing images of a round, by default of the first incomplete round, and pack them into shards."""
    config, context = session.config, session.context
    if config.distill.shards:
        if context.is_main_process:
            print("synthesize: nothing to make, distill.shards names the images")
        return
    if round_index is None:
        round_index = context.broadcast(_next_round(config))
    folder, was_complete = config.round_folder(round_index), True
    if repair := context.broadcast(plan_repair(folder) if context.is_main_process and is_packed(folder) else None):
        was_complete = not repair.faults
        _repair_set(session, round_index, repair)
    # All ranks use what rank 0 sees: on a network file system, they may see other files for a while.
    while missing := context.broadcast(next_set(config, round_index) if context.is_main_process else None):
        was_complete = False
        _make_set(session, round_index, *missing)
    if context.is_main_process:
        manifest = read_manifest(folder)
        remove_parts(folder)
        remove_joined(folder)
        _finish_pictures(session, round_index)
        scores = ", ".join(f"{name} {value:.1%}" for name, value in manifest["scores"].items())
        note = " (up to date)" if was_complete else ""
        print(f"synthesize: {manifest['num_images']:,} images in {folder}; {scores}{note}")
    context.barrier()


def _repair_set(session: Session, round_index: int, repair: Repair) -> None:
    """Make the lost images of a complete set anew, and write its damaged files again."""
    config, context = session.config, session.context
    plans = {step: _plan(config, round_index, step) for step in steps_of_set(config, round_index)}
    lost = {step: [spec for spec in specs if not repair.lost.isdisjoint(spec.keys)] for step, specs in plans.items()}
    num_lost, num_batches = (sum(map(len, specs.values())) for specs in (lost, plans))
    if context.is_main_process and repair.faults:
        print(*(f"synthesize: {fault}; it is written again" for fault in repair.faults.values()), sep="\n")
        print(f"synthesize: lost images: {len(repair.lost)}; batches made again: {num_lost} of {num_batches}")
    for step, specs in lost.items():
        if specs:
            _make_missing(session, round_index, step, repair.workshop, specs)
    if context.is_main_process:
        changed = write_repaired(repair, [spec.index for specs in lost.values() for spec in specs])
        for path in restore_texts(config, round_index):
            print(f"synthesize: {path} was missing or damaged; it is written again")
        if changed:
            print(
                f"synthesize: repaired shards with other bytes than before: {len(changed)} of {len(repair.faults)}; "
                "images that are made on another kind of machine have other last bits"
            )
        if session.object_store is not None:
            indices = {spec.index for specs in plans.values() for spec in specs}
            push_set(session.object_store, repair.folder, indices, written_again=repair.faults)
    context.barrier()


def _make_set(session: Session, round_index: int, synthesis: SynthesisConfig, folder: Path) -> None:
    """Make the missing batches of a set, or of the images that it grows by, in `folder`, and pack them."""
    config, context = session.config, session.context
    specs = _plan(config, round_index, synthesis)
    _make_missing(session, round_index, synthesis, folder, specs)
    if context.is_main_process:
        _pack_set(session, round_index, synthesis, folder, specs)
    context.barrier()


def _make_missing(
    session: Session, round_index: int, synthesis: SynthesisConfig, folder: Path, specs: Sequence[BatchSpec]
) -> None:
    """Make those of the batches that have no part in `folder`."""
    config, context = session.config, session.context
    identity = synthesis_identity(config, round_index, synthesis)
    for fault in remove_damaged_parts(folder, specs) if context.is_main_process else ():
        print(f"synthesize: {fault}; its batch is made again", flush=True)
    _exchange_parts(session, folder, specs, fingerprint(identity))
    if missing := context.broadcast(missing_batches(folder, specs) if context.is_main_process else []):
        objective = session.objective(round_index)  # before anything is written: the networks may not load
        store = BatchStore(
            folder=folder,
            fingerprint=fingerprint(identity),
            config=synthesis,
            scorers=session.scorers,
            object_store=session.object_store,
        )
        if context.is_main_process:
            write_identity(folder, identity, resolved_yaml(config))
            print(f"synthesize: {picture_path(config.checkpoints, PREVIEW)} shows the newest state", flush=True)
        context.barrier()  # the identity comes before the first part
        progress = _progress(config, round_index, len(specs), len(missing))
        with open_recorder(config.metrics_path(context.rank), progress, context, session.sinks) as recorder:
            monitor = Monitor(recorder, config.synthesis.inversion.num_steps, _live_pictures(session, round_index))
            make_batches(objective, missing, store, monitor, context)
        if session.object_store is not None:
            session.object_store.push_rest()
        context.barrier(LOST_AFTER)  # all batches are finished, so every rank is about to come
        _exchange_parts(session, folder, specs, fingerprint(identity))  # those that other machines made


def _exchange_parts(session: Session, folder: Path, specs: Sequence[BatchSpec], fingerprint: str) -> None:
    if session.context.is_main_process and session.object_store is not None and not is_packed(folder):
        exchange_parts(session.object_store, folder, {spec.index: spec.keys for spec in specs}, fingerprint)


def _pack_set(
    session: Session, round_index: int, synthesis: SynthesisConfig, folder: Path, specs: Sequence[BatchSpec]
) -> None:
    """Pack the parts of a set, and join it with the one that it grows."""
    config = session.config
    _remove_picture(config, grid_name(round_index))  # of the set before it grew
    if not is_packed(folder):
        facts = manifest_facts(synthesis, config.student_images)
        facts |= {"round": round_index, "teacher": config.teacher.source, **_classes(config)}
        facts |= {"device": device_name(session.context.device)}
        pack(folder, [spec.index for spec in specs], synthesis_identity(config, round_index, synthesis), facts)
    if synthesis.grown_from:
        join_growth(config.round_folder(round_index))
    if session.object_store is not None:
        push_set(session.object_store, config.round_folder(round_index), {spec.index for spec in specs})


def _plan(config: RunConfig, round_index: int, synthesis: SynthesisConfig) -> list[BatchSpec]:
    return plan_batches(synthesis, config.student_images.num_classes, config.seed, round_index)


def _classes(config: RunConfig) -> dict[str, Any]:
    """For each label of the images, the teacher's label and the title of the class."""
    labels = config.class_labels or range(config.images.num_classes)
    return {"classes": list(labels), "class_titles": list(config.class_titles)}


def _live_pictures(session: Session, round_index: int) -> LivePictures | None:
    config = session.config
    if not session.context.is_main_process:
        return None
    titles = RoundTitles(round=_round_title(config, round_index), classes=config.class_titles)
    evolution = evolution_name(round_index) if has_pictures(round_index, config.synthesis.rounds) else None
    return LivePictures(session.sinks, titles, config.synthesis.inversion, config.images.size, evolution)


def _remove_picture(config: RunConfig, name: str) -> None:
    with suppress(OSError):  # a picture that could not be written was warned of
        picture_path(config.checkpoints, name).unlink(missing_ok=True)


def _finish_pictures(session: Session, round_index: int) -> None:
    """Remove the preview, and draw the grid of a packed round if it has none."""
    config, name = session.config, grid_name(round_index)
    _remove_picture(config, PREVIEW)
    if has_pictures(round_index, config.synthesis.rounds) and not picture_path(config.checkpoints, name).is_file():
        specs = _plan(config, round_index, config.synthesis)
        num_steps = config.synthesis.inversion.num_steps
        picture = draw_grid(config.round_folder(round_index), _round_title(config, round_index))
        session.sinks.image(name, picture, run_step(specs[-1], num_steps, num_steps))


def _round_title(config: RunConfig, round_index: int) -> str:
    return f"{config.name}, round {round_index}"


def _next_round(config: RunConfig) -> int:
    rounds = range(config.synthesis.rounds)
    return next((r for r in rounds if not is_packed(config.round_folder(r))), rounds[-1])


def _progress(config: RunConfig, round_index: int, num_batches: int, num_missing: int) -> Progress:
    """The steps of all batches, whichever rank makes them."""
    num_steps = config.synthesis.inversion.num_steps
    total, done = num_batches * num_steps, (num_batches - num_missing) * num_steps
    return Progress(stage="synthesize", total=total, unit="steps", done=done, round_index=round_index)
