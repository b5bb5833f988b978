"""Checks of the machine: device, precision, compiler, disk."""

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.data.codec import encode_image, to_uint8
from pipeline.data.shards import is_packed, read_manifest
from pipeline.distillation.config import TrainingConfig
from pipeline.doctor.examination import Examination
from pipeline.doctor.findings import Finding, ok, problem, warning
from pipeline.estimate import num_files_of
from pipeline.resolve import with_acceleration
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.environment import named_device
from pipeline.runtime.hardware import device_name, free_memory_bytes, num_free_cores, unusable_driver
from pipeline.runtime.quantities import size
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.inputs import init_noise, to_pixels
from pipeline.synthesis.plan import plan_batches

# Bytes of an image in a tar beside its encoded pixels: three headers, the label, about 600 bytes of metadata, padding.
TAR_BYTES_PER_IMAGE = 3 * 512 + 512 + 1024 + 256
# Images that are encoded to learn their size.
NUM_ENCODED = 8
# Bytes of a parameter: in a checkpoint, and in the saved state of training (weights, two moments, a temporary copy).
CHECKPOINT_BYTES, STATE_BYTES = 4, 24


def check_device(examination: Examination) -> Iterator[Finding]:
    """The device, the threads, the free memory; an unused GPU; cores that other programs use."""
    context, num_threads = examination.context, torch.get_num_threads()
    memory = f"{size(free_memory_bytes(context.device))} of free memory"
    text = f"{device_name(context.device)}, threads of each process: {num_threads}, {memory}"
    num_free, num_needed = num_free_cores(), num_threads * context.local_size
    driver_problem = None if named_device() is not None or context.device.type != "cpu" else unusable_driver()
    if driver_problem:
        yield warning("device", f"{text}; the NVIDIA driver of this machine is not used: {driver_problem}")
    elif context.device.type == "cpu" and num_free is not None and num_free < num_needed and num_threads > 1:
        fix = f"wait, or set OMP_NUM_THREADS={max(1, num_free // context.local_size)}"
        yield warning("device", f"{text}; the load of the last minute left {num_free} cores free: {fix}")
    else:
        yield ok("device", text)


def check_acceleration(examination: Examination) -> Iterator[Finding]:
    """What `precision` and `compile` are on this machine; the other checks get the configuration with them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            resolved = with_acceleration(examination.config, examination.device)
        except ConfigError as error:
            examination.is_ready = False
            yield problem("compiler", str(error))
            return
    examination.config = resolved
    texts = dict.fromkeys(str(w.message) for w in caught)
    slow = [text for text in texts if ".precision:" in text]
    missing = [text for text in texts if text.startswith("compile:")]
    sections: dict[str, InversionConfig | TrainingConfig] = {
        "synthesis": resolved.synthesis.inversion,
        "distillation": resolved.distill,
    }
    if resolved.distill.shards:
        del sections["synthesis"]
    if resolved.teacher_training:
        sections["teacher"] = resolved.teacher_training
    yield from [warning("precision", text) for text in slow] or [
        ok("precision", ", ".join(f"{name} in {section.precision}" for name, section in sections.items()))
    ]
    compiled = [name for name, section in sections.items() if section.compile]
    yield from [warning("compiler", text) for text in missing] or [
        ok("compiler", f"works, for {', '.join(compiled)}" if compiled else "not needed: no stage is to be compiled")
    ]


def check_disk(examination: Examination) -> Iterator[Finding]:
    """Whether the output folders can be written, and have the bytes and files that the run needs."""
    config = examination.config
    folders = {"shards_dir": config.shards, "checkpoints_dir": config.checkpoints}
    sizes = _missing_sets(examination)
    num_files = num_files_of(config) + _num_parts(config) if sizes else 0
    needed = {"shards_dir": _shard_bytes(config, sizes), "checkpoints_dir": _checkpoint_bytes(examination)}
    parents = {key: _existing_parent(folder) for key, folder in folders.items()}
    if os.stat(parents["shards_dir"]).st_dev == os.stat(parents["checkpoints_dir"]).st_dev:
        needed = dict.fromkeys(needed, sum(needed.values()))
    for key, parent in parents.items():
        yield _disk_finding(key, parent, needed[key], num_files if key == "shards_dir" else 0)


def _disk_finding(key: str, parent: Path, needed_bytes: int, needed_files: int) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        fix = f"check its permissions, or set {key} to another folder"
        return problem("disk", f"{key}: cannot write to {parent.resolve()} ({error.strerror}); {fix}")
    system = os.statvfs(parent)
    free_bytes = system.f_bavail * system.f_frsize
    needed = f"the run needs up to {size(needed_bytes)}"
    text = f"{key}: {size(free_bytes)} are free at {parent.resolve()}, {needed}"
    if free_bytes < needed_bytes:
        return problem("disk", f"{text}; free space, or set {key} to a folder on another disk")
    if system.f_files and system.f_favail < needed_files:  # file systems without a fixed number of files report 0
        fix = f"remove files, set {key}, or raise synthesis.images_per_shard and synthesis.batch_size"
        return problem(
            "disk", f"{key}: {system.f_favail:,} more files fit at {parent}, the run makes {needed_files:,}; {fix}"
        )
    return ok("disk", text)


def _existing_parent(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _missing_sets(examination: Examination) -> list[int]:
    """The images of each set that is to be made: of the rounds to come, or of each growth of the set that exists."""
    config = examination.config
    synthesis, folder = config.synthesis, config.round_folder(0)
    if config.distill.shards:
        return []
    if synthesis.rounds > 1:
        num_missing = sum(not is_packed(config.round_folder(r)) for r in range(synthesis.rounds))
        return [synthesis.num_images // synthesis.rounds] * num_missing
    # Without a readable manifest, the check of the images has named the problem.
    num_existing = read_manifest(folder)["num_images"] if is_packed(folder) and examination.is_ready else 0
    return [step.num_added for step in synthesis.growth if step.num_images > num_existing]


def _checkpoint_bytes(examination: Examination) -> int:
    """The bytes of the networks that are to be trained, and of the state of each training."""
    config, networks = examination.config, examination.networks
    num_saved = {"student": config.num_rounds, "teacher": 0 if examination.has_trained_teacher else 1}
    return sum(
        networks[key].num_parameters * (CHECKPOINT_BYTES * count + STATE_BYTES)
        for key, count in num_saved.items()
        if count and key in networks
    )


def _shard_bytes(config: RunConfig, sizes: Sequence[int]) -> int:
    """An upper bound of the bytes of sets: noise compresses badly; the set in work has its parts beside its shards."""
    synthesis = config.synthesis
    shape = (NUM_ENCODED, *config.images.shape)
    noise = to_uint8(to_pixels(init_noise(shape, synthesis.inversion.init_noise, make_generator(0, "doctor"))))
    files = [encode_image(image, synthesis.image_format, synthesis.jpeg_quality) for image in noise]
    image_bytes = sum(map(len, files)) / len(files) + TAR_BYTES_PER_IMAGE
    return round(image_bytes * (sum(sizes) + max(sizes, default=0)))


def _num_parts(config: RunConfig) -> int:
    """The largest number of part files that exist at the same time."""
    num_classes = config.student_images.num_classes
    return max(len(plan_batches(step, num_classes, 0, 0)) for step in config.synthesis.growth)
