"""Time, memory and disk of a run on this machine, extrapolated from a few measured steps."""

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.codec import decode_image, encode_image
from pipeline.data.image_sets import ArrayImages
from pipeline.data.loader import cache_limit_bytes, preload
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.distillation.state import TrainState
from pipeline.distillation.train import train
from pipeline.evaluation.scores import score
from pipeline.run import RunConfig
from pipeline.runtime.hardware import peak_memory_bytes
from pipeline.runtime.quantities import duration, size
from pipeline.runtime.recorder import read_metrics, seconds_of_stages
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session
from pipeline.synthesis.batches import invert_batch
from pipeline.synthesis.invert import Callbacks
from pipeline.synthesis.objective import Objective
from pipeline.synthesis.plan import plan_batches

# Timed steps, after as many steps that compile and warm up.
TIMED_STEPS = 5
# Images that are encoded, decoded and scored.
MAX_STORED = 32
# Files of a round beside its shards: manifest and its copy, info, card, configuration, identity.
FILES_PER_ROUND = 6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds, bytes and files of a whole run.

    `compile_s` is the part that each process needs once. `teacher_s` is what the training of the teacher took; 0 if it
    was not trained here.
    """

    teacher_s: float
    synthesize_s: float
    distill_s: float
    compile_s: float
    image_steps_per_s: float
    trained_images_per_s: float
    peak_memory_bytes: int
    shard_bytes: int
    num_files: int

    def lines(self) -> list[str]:
        """The estimate as lines of text; nothing about synthesis if the run makes no images."""
        speed = f"{self.image_steps_per_s:,.0f} images x steps per second"
        synthesis = f"synthesis     {duration(self.synthesize_s)}, {speed}"
        distillation = duration(self.distill_s)
        disk = f"disk          {size(self.shard_bytes)} of shards in {self.num_files:,} files"
        return [
            *([f"teacher       {duration(self.teacher_s)}, measured: it is trained"] if self.teacher_s else []),
            *([synthesis] if self.num_files else []),
            f"distillation  {distillation}, {self.trained_images_per_s:,.0f} images per second",
            f"start-up      {duration(self.compile_s)} of it, compilation included, once for each process",
            f"memory        {size(self.peak_memory_bytes)} for each process at most, as far as these steps show",
            *([disk] if self.num_files else []),
        ]


def estimate(session: Session) -> Estimate:
    """Measure a few steps of every phase and of distillation, and extrapolate. No output of these steps is kept.

    The estimate is of a whole run, whatever exists of it. Adaptive rounds are timed with an untrained student. The
    ranks share the time of synthesis; there is none if `distill.shards` names the images.
    """
    config, context = session.config, session.context
    made = _Synthesis() if config.distill.shards else _estimate_synthesis(session)
    folders = config.image_folders(0) if config.distill.shards else []
    decode_s = _time_reading(session.pool.shards(folders)) if folders else made.decode_s
    num_images = sum(read_manifest(f)["num_images"] for f in folders) if folders else config.synthesis.num_images
    training = _time_distillation(session)
    limit_bytes = cache_limit_bytes(config.distill.memory_gib, context.device, context.local_size)
    pool_bytes = num_images * math.prod(config.images.shape)
    is_cached = pool_bytes <= limit_bytes
    if not is_cached:
        training = replace(training, seconds=max(training.seconds, decode_s * config.distill.batch_size))
    is_trained = config.teacher.weights is None
    return Estimate(
        teacher_s=seconds_of_stages(read_metrics(config.metrics_path())).get("teacher", 0.0) if is_trained else 0.0,
        synthesize_s=made.seconds,
        distill_s=training.seconds * config.distill.steps + training.first_s,
        compile_s=made.compile_s + training.first_s,
        image_steps_per_s=made.image_steps_per_s,
        trained_images_per_s=config.distill.batch_size / training.seconds,
        # These steps trained beside the images of one batch, the run trains beside all.
        peak_memory_bytes=peak_memory_bytes(context.device) + is_cached * pool_bytes,
        shard_bytes=made.shard_bytes,
        num_files=0 if folders else num_files_of(config),
    )


@dataclass(frozen=True, kw_only=True)
class _Synthesis:
    """The part of the estimate about synthesis, and seconds to decode an image; all are 0 if nothing is made."""

    seconds: float = 0.0
    compile_s: float = 0.0
    image_steps_per_s: float = 0.0
    shard_bytes: int = 0
    decode_s: float = 0.0


def _estimate_synthesis(session: Session) -> _Synthesis:
    config, synthesis = session.config, session.config.synthesis
    num_classes = config.student_images.num_classes
    num_batches = [
        sum(len(plan_batches(step, num_classes, config.seed, r)) for step in synthesis.growth)
        for r in range(synthesis.rounds)
    ]
    num_adaptive = sum(count for r, count in enumerate(num_batches) if config.is_adaptive(r))
    plain = _time_inversion(config, session.plain_objective)
    adaptive = _time_inversion(config, session.adaptive_objective) if num_adaptive else plain
    batches_s = (sum(num_batches) - num_adaptive) * plain.seconds + num_adaptive * adaptive.seconds
    assert plain.images is not None
    image_bytes, encode_s, decode_s = _measure_codec(config, plain.images)
    store_s = encode_s + decode_s + _time_scoring(session, plain.images)
    compile_s = plain.first_s + (adaptive.first_s if num_adaptive else 0.0)
    return _Synthesis(
        seconds=(batches_s + store_s * synthesis.num_images) / session.context.size + compile_s,
        compile_s=compile_s,
        image_steps_per_s=synthesis.num_images * synthesis.inversion.num_steps / batches_s * session.context.size,
        shard_bytes=round(image_bytes * synthesis.num_images),
        decode_s=decode_s,
    )


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """Seconds of a batch of inversion or of a step of training; `first_s` is the extra time of the first steps."""

    seconds: float
    first_s: float
    images: Tensor | None = None


def _time_inversion(config: RunConfig, objective: Objective) -> _Timing:
    spec = plan_batches(config.synthesis, config.student_images.num_classes, config.seed, 0)[0]
    inversion = config.synthesis.inversion
    phases = tuple(replace(phase, steps=2 * TIMED_STEPS) for phase in inversion.phases)
    clock = _Clock()
    inversion_of_few = replace(inversion, phases=phases, log_every=1)
    result = invert_batch(objective, spec, inversion_of_few, Callbacks(on_step=clock.on_step))
    seconds = first_s = 0.0
    for i, phase in enumerate(inversion.phases):
        step_s, extra_s = clock.split(2 * TIMED_STEPS * i)
        seconds += phase.steps * step_s
        first_s += extra_s
    return _Timing(seconds=seconds, first_s=first_s, images=result.images)


def _time_distillation(session: Session) -> _Timing:
    config, context = session.config, session.context
    count = config.distill.batch_size
    pixels = torch.randint(0, 256, (count, *config.images.shape), generator=make_generator(config.seed, "estimate"))
    images = ArrayImages(pixels.to(torch.uint8), torch.arange(count) % config.student_images.num_classes)
    distill = replace(config.distill, steps=2 * TIMED_STEPS, log_every=1, save_every_s=math.inf)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState.open(session.student(0), distill, Path(folder) / "student.state", {})
        train(state, session.distillation, preload(images, context.device), context, clock.on_step)
    step_s, first_s = clock.split(0)
    return _Timing(seconds=step_s, first_s=first_s)


class _Clock:
    """The time after every step of inversion or training; as a logging step, it has waited for the device."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]

    def on_step(self, step: int, *details: object) -> None:
        self._times.append(time.perf_counter())

    def split(self, first: int) -> tuple[float, float]:
        """Seconds of a timed step of those from `first` on, and the extra time of the steps before the timed ones."""
        step_times = [b - a for a, b in pairwise(self._times[first : first + 2 * TIMED_STEPS + 1])]
        step_s = statistics.median(step_times[TIMED_STEPS:])
        return step_s, max(0.0, sum(step_times[:TIMED_STEPS]) - TIMED_STEPS * step_s)


def _measure_codec(config: RunConfig, images: Tensor) -> tuple[float, float, float]:
    """Bytes of a stored image, and seconds to encode and to decode it with as many threads as PyTorch uses."""
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


def _time_reading(images: ShardSet) -> float:
    """Seconds to read and decode an image with as many threads as PyTorch uses."""
    indices = range(min(MAX_STORED, len(images)))
    started = time.perf_counter()
    images.batch(indices)
    return (time.perf_counter() - started) / len(indices) / torch.get_num_threads()


def _time_scoring(session: Session, images: Tensor) -> float:
    """Seconds in which teacher and verifier score an image."""
    sample = images[:MAX_STORED]
    labels = torch.zeros(len(sample), dtype=torch.long)
    score(sample, labels, session.scorers)  # warms up
    started = time.perf_counter()
    score(sample, labels, session.scorers)
    return (time.perf_counter() - started) / len(sample)


def num_files_of(config: RunConfig) -> int:
    """The files of all finished rounds."""
    synthesis, num_classes = config.synthesis, config.student_images.num_classes
    num_shards = 0
    for step in synthesis.growth:
        added = step.num_added // synthesis.rounds
        num_shards += min(num_classes, added) * math.ceil(math.ceil(added / num_classes) / synthesis.images_per_shard)
    return synthesis.rounds * (num_shards + FILES_PER_ROUND)
