"""What a run will take on this machine: a few steps are measured, the rest is multiplication."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.codec import decode_image, encode_image
from pipeline.data.image_sets import ArrayImages
from pipeline.data.loader import held_limit_bytes, hold_in_memory
from pipeline.distillation.state import TrainState
from pipeline.distillation.train import train
from pipeline.evaluation.scores import judge
from pipeline.run import RunConfig
from pipeline.runtime.hardware import peak_memory_bytes
from pipeline.runtime.ranges import batch_ranges, even_ranges
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session
from pipeline.synthesis.config import MIN_BATCH
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.plan import plan_batches

# Steps that are timed, after as many that compile and warm up.
TIMED_STEPS = 5


# Share of a device's memory that a batch may take, since the allocator needs room between blocks.
USABLE_MEMORY = 0.9


# Images that are encoded, decoded and judged.
MAX_STORED = 32


# Files of a round beside its shards: manifest, info, card, configuration, identity.
FILES_OF_A_ROUND = 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds, bytes and files of a whole run; `compile_s` is the part that comes once for each process."""

    synthesize_s: float
    distill_s: float
    compile_s: float
    image_steps_per_s: float
    trained_images_per_s: float
    peak_memory_bytes: int
    shard_bytes: int
    num_files: int

    def lines(self) -> list[str]:
        """The figures for a person."""
        return [
            f"synthesis     {_duration(self.synthesize_s)}, {self.image_steps_per_s:,.0f} images x steps a second",
            f"distillation  {_duration(self.distill_s)}, {self.trained_images_per_s:,.0f} images a second",
            f"compilation   {_duration(self.compile_s)} of it, once for each process",
            f"memory        {self.peak_memory_bytes / 2**30:.2f} GiB at most, so far as these steps can tell",
            f"disk          {self.shard_bytes / 2**30:.2f} GiB of shards in {self.num_files:,} files",
        ]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def estimate(session: Session) -> Estimate:
    """Measure a few steps of every phase and of distillation, and multiply. Nothing that they make is kept.

    Rounds with a rival are timed with a student that has learnt nothing. Synthesis is shared by the world's workers.
    """
    config, world = session.config, session.world
    synthesis, rounds = config.synthesis, even_ranges(config.synthesis.num_images, config.synthesis.rounds)
    num_batches = [len(batch_ranges(len(images), synthesis.batch_size)) for images in rounds]
    num_rival = sum(num_batches[1:]) if synthesis.inversion.terms.competition else 0
    plain = _time_inversion(config, session.objective_without_rival, world.device)
    rival = _time_inversion(config, session.objective_with_rival, world.device) if num_rival else plain
    batches_s = (sum(num_batches) - num_rival) * plain.seconds + num_rival * rival.seconds
    assert plain.images is not None
    image_bytes, encode_s, decode_s = _measure_codec(config, plain.images)
    store_s = encode_s + decode_s + _time_judging(session, plain.images)
    training = _time_distillation(session)
    limit_bytes = held_limit_bytes(config.distill.memory_gib, world.device, world.local_size)
    if synthesis.num_images * math.prod(config.images.shape) > limit_bytes:
        training = replace(training, seconds=max(training.seconds, decode_s * config.distill.batch_size))
    compile_s = plain.first_s + (rival.first_s if num_rival else 0.0)
    return Estimate(
        synthesize_s=(batches_s + store_s * synthesis.num_images) / world.size + compile_s,
        distill_s=training.seconds * config.distill.steps + training.first_s,
        compile_s=compile_s + training.first_s,
        image_steps_per_s=synthesis.num_images * synthesis.inversion.num_steps / batches_s * world.size,
        trained_images_per_s=config.distill.batch_size / training.seconds,
        peak_memory_bytes=peak_memory_bytes(world.device),
        shard_bytes=round(image_bytes * synthesis.num_images),
        num_files=_num_files(config),
    )


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """Seconds of a batch of inversion or of a step of training; `first_s` is what the first steps take longer."""

    seconds: float
    first_s: float
    images: Tensor | None = None


def _time_inversion(config: RunConfig, objective: Objective, device: torch.device) -> _Timing:
    spec = plan_batches(config.synthesis, config.images.num_classes, config.seed, 0)[0]
    inversion = config.synthesis.inversion
    phases = tuple(replace(phase, steps=2 * TIMED_STEPS) for phase in inversion.phases)
    clock = _Clock()
    found = invert(
        objective,
        torch.tensor(spec.labels, device=device),
        (config.images.height, config.images.width),
        replace(inversion, phases=phases, log_every=1),
        torch.Generator().manual_seed(spec.seed),
        clock.on_step,
    )
    seconds = first_s = 0.0
    for i, phase in enumerate(inversion.phases):
        step_s, extra_s = clock.split(2 * TIMED_STEPS * i)
        seconds += phase.steps * step_s
        first_s += extra_s
    return _Timing(seconds=seconds, first_s=first_s, images=found.images)


def _time_distillation(session: Session) -> _Timing:
    config, world = session.config, session.world
    count = config.distill.batch_size
    pixels = torch.randint(0, 256, (count, *config.images.shape), generator=make_generator(config.seed, "estimate"))
    images = ArrayImages(pixels.to(torch.uint8), torch.arange(count) % config.images.num_classes)
    distill = replace(config.distill, steps=2 * TIMED_STEPS, log_every=1, save_every_s=math.inf)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState.open(session.student(0), distill, Path(folder) / "student.state", {})
        held = hold_in_memory(images, world.device)
        train(state, session.distillation, held, distill, world, on_step=clock.on_step)
    step_s, first_s = clock.split(0)
    return _Timing(seconds=step_s, first_s=first_s)


class _Clock:
    """The time after every step; a logging step has waited for the device."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]

    def on_step(self, step: int, figures: dict[str, float]) -> None:
        self._times.append(time.perf_counter())

    def split(self, first: int) -> tuple[float, float]:
        """Seconds of a step of those from `first` on, and what the ones before the timed took longer than that."""
        taken = [b - a for a, b in pairwise(self._times[first : first + 2 * TIMED_STEPS + 1])]
        step_s = statistics.median(taken[TIMED_STEPS:])
        return step_s, max(0.0, sum(taken[:TIMED_STEPS]) - TIMED_STEPS * step_s)


def _measure_codec(config: RunConfig, images: Tensor) -> tuple[float, float, float]:
    """Bytes of a stored image, seconds to encode it and to decode it, with as many threads as PyTorch has."""
    synthesis, num_threads = config.synthesis, torch.get_num_threads()
    sample = images[:MAX_STORED]
    started = time.perf_counter()
    files = [encode_image(image, synthesis.image_format, synthesis.jpeg_quality) for image in sample]
    encoded = time.perf_counter()
    for file in files:
        decode_image(file, config.images.channels, "a calibration image")
    decoded = time.perf_counter()
    count = len(files)
    return (
        sum(map(len, files)) / count,
        (encoded - started) / count / num_threads,
        (decoded - encoded) / count / num_threads,
    )


def _time_judging(session: Session, images: Tensor) -> float:
    """Seconds that teacher and verifier need for an image."""
    sample = images[:MAX_STORED].to(session.world.device)
    labels = torch.zeros(len(sample), dtype=torch.long, device=sample.device)
    judge(sample, labels, session.teacher, session.verifier)  # warms up
    started = time.perf_counter()
    judge(sample, labels, session.teacher, session.verifier)
    return (time.perf_counter() - started) / len(sample)


def _num_files(config: RunConfig) -> int:
    synthesis = config.synthesis
    num_classes = len(synthesis.classes) if synthesis.classes is not None else config.images.num_classes
    in_a_round = synthesis.num_images // synthesis.rounds
    shards_of_a_class = math.ceil(math.ceil(in_a_round / num_classes) / synthesis.images_per_shard)
    return synthesis.rounds * (min(num_classes, in_a_round) * shards_of_a_class + FILES_OF_A_ROUND)


def batch_that_fits(peak_bytes: Callable[[int], int], batch_size: int, limit_bytes: int) -> int:
    """The largest batch whose peak stays within a share of `limit_bytes`, from the peaks of two small batches."""
    small, larger = max(MIN_BATCH, batch_size // 8), max(MIN_BATCH + 1, batch_size // 4)
    base, more = peak_bytes(small), peak_bytes(larger)
    bytes_per_image = max(1.0, (more - base) / (larger - small))
    return max(MIN_BATCH, int(small + (USABLE_MEMORY * limit_bytes - base) / bytes_per_image))


def inversion_peak_bytes(config: RunConfig, objective: Objective, device: torch.device, batch_size: int) -> int:
    """Peak memory of a few steps of every phase with that many images, on a CUDA device."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    inversion = config.synthesis.inversion
    few_steps = replace(inversion, phases=tuple(replace(phase, steps=2) for phase in inversion.phases))
    labels, size = torch.zeros(batch_size, dtype=torch.long, device=device), (config.images.height, config.images.width)
    invert(objective, labels, size, few_steps, make_generator(config.seed, "estimate"))
    return torch.cuda.max_memory_allocated(device)
