"""Invert the teacher into the class-organised synthetic images of one round."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.data.codec import decode_image, encode_image
from pipeline.data.shards import MANIFEST, Sample, check_sizes, pack, part_path, read_manifest, remove_parts, write_part
from pipeline.estimate import batch_that_fits, inversion_peak_bytes
from pipeline.evaluation.scores import judge
from pipeline.identity import check_folder, claim_folder, synthesis_identity
from pipeline.models.classifier import Classifier
from pipeline.run import RunConfig
from pipeline.runtime.distributed import World
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.recorder import OnStep, Recorder, open_recorder
from pipeline.runtime.threads import background_threads, overlapped
from pipeline.session import Session
from pipeline.synthesis.invert import Inversion, invert
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.plan import BatchSpec, plan_batches
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Make every batch of the round that is not there yet, then pack all of them into shards."""
    config, world = session.config, session.world
    if round_index is None:
        round_index = world.broadcast(_next_round(config))
    folder, identity = config.round_folder(round_index), synthesis_identity(config, round_index)
    check_folder(folder, identity)
    specs = plan_batches(config.synthesis, config.images.num_classes, config.seed, round_index)
    complete = (folder / MANIFEST).exists()
    absent = [i for i, spec in enumerate(specs) if not complete and not part_path(folder, spec.index).exists()]
    # What the leader sees counts: workers on a network file system may see other files for a while.
    complete, absent = world.broadcast((complete, absent))
    pending = [specs[i] for i in absent]
    if pending:
        # Before anything is written, since the networks' files can be wrong.
        objective, judges = session.objective(round_index), (session.teacher, session.verifier)
        if world.is_leader:
            claim_folder(folder, identity, config)
        world.barrier()  # no part is written before it is known whose it is
        has_memory = False
        with suppress(torch.OutOfMemoryError):  # as long as it is there, so is the batch that did not fit
            _make_parts(session, round_index, pending, len(specs) - len(pending), objective, judges)
            has_memory = True
        if not has_memory:
            raise ValueError(_too_large(config, objective, world))
        world.barrier()
    if world.is_leader:
        if complete:
            check_sizes(folder, read_manifest(folder))
        else:
            pack(folder, [spec.index for spec in specs], identity, _facts(config, round_index))
        remove_parts(folder)
        print(f"synthesize: {_summary(config, round_index)}{' (up to date)' if complete else ''}")
    world.barrier()


def _next_round(config: RunConfig) -> int:
    rounds = range(config.synthesis.rounds)
    return next((r for r in rounds if not (config.round_folder(r) / MANIFEST).exists()), rounds[-1])


def _make_parts(
    session: Session,
    round_index: int,
    pending: list[BatchSpec],
    num_done: int,
    objective: Objective,
    judges: tuple[Classifier, Classifier | None],
) -> None:
    """Make this worker's share of the pending batches; the judges are the teacher and the verifier.

    Where the cores are free meanwhile, a finished batch is encoded, judged and written while the next one is inverted.
    """
    config, world = session.config, session.world
    inversion_config, specs = config.synthesis.inversion, pending[world.rank :: world.size]
    steps, steps_done = inversion_config.num_steps, num_done // world.size * inversion_config.num_steps
    with (
        open_recorder(
            config.metrics_path(world.rank),
            "synthesize",
            total=steps_done + len(specs) * steps,
            done=steps_done,
            unit="steps",
            visible=world.is_leader,
            round_index=round_index,
        ) as recorder,
        overlapped(world.leaves_cores_free) as storing,
    ):
        for i, spec in enumerate(specs):
            inversion = invert(
                objective,
                torch.tensor(spec.labels, device=world.device),
                (config.images.height, config.images.width),
                inversion_config,
                torch.Generator().manual_seed(spec.seed),
                _logger(recorder, spec.index, steps_done + i * steps),
            )
            storing.start(partial(_store, config, config.round_folder(round_index), spec, inversion, judges))


def _store(
    config: RunConfig,
    folder: Path,
    spec: BatchSpec,
    inversion: Inversion,
    judges: tuple[Classifier, Classifier | None],
) -> None:
    write_part(folder, spec.index, _samples(config, spec, inversion, judges), config.synthesis.image_format)


def _too_large(config: RunConfig, objective: Objective, world: World) -> str:
    """What to do about batches that the device has no memory for."""
    batch_size = config.synthesis.batch_size
    limit_bytes = torch.cuda.get_device_properties(world.device).total_memory
    fits = batch_that_fits(partial(inversion_peak_bytes, config, objective, world.device), batch_size, limit_bytes)
    return (
        f"synthesis.batch_size: {batch_size} images at once need more than the {limit_bytes / 2**30:.1f} GiB of "
        f"{world.device}; about {fits} fit, set it to that"
    )


def _logger(recorder: Recorder, batch: int, steps_before: int) -> OnStep:
    return lambda step, figures: recorder.log(step, figures, done=steps_before + step + 1, batch=batch)


def _samples(
    config: RunConfig,
    spec: BatchSpec,
    inversion: Inversion,
    judges: tuple[Classifier, Classifier | None],
) -> list[Sample]:
    """Encode the images, and judge what a reader of the files will see."""
    synthesis = config.synthesis
    with background_threads() as threads:  # Pillow encodes without holding the interpreter's lock
        files = list(
            threads.map(
                lambda image: encode_image(image, synthesis.image_format, synthesis.jpeg_quality), inversion.images
            )
        )
    stored = torch.stack([decode_image(file, config.images.channels, f"batch {spec.index}") for file in files])
    device = judges[0].mean.device
    verdicts = judge(stored.to(device), inversion.labels.to(device), *judges)
    return [
        Sample(
            number=spec.first_image + i,
            label=spec.labels[i],
            image=files[i],
            evidence={"batch": spec.index, "seed": spec.seed, "label": spec.labels[i], **verdicts[i]},
        )
        for i in range(len(files))
    ]


def _facts(config: RunConfig, round_index: int) -> dict[str, Any]:
    """What the manifest says beside the images' identity."""
    return {
        "round": round_index,
        "teacher": config.teacher.source,
        "num_classes": config.images.num_classes,
        "shape": list(config.images.shape),
        "image_format": config.synthesis.image_format,
        "images_per_shard": config.synthesis.images_per_shard,
        "versions": versions(),
    }


def _summary(config: RunConfig, round_index: int) -> str:
    folder = config.round_folder(round_index)
    manifest = read_manifest(folder)
    verdict = ", ".join(f"{name} {value:.1%}" for name, value in manifest["verdict"].items())
    return f"{manifest['num_images']:,} images in {folder}; {verdict}"


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
