"""What every benchmark shares: the facts of the machine, the noise control, the summary over seeds, the result file."""

import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.codec import to_uint8
from pipeline.data import ArrayImages, load_images
from pipeline.evaluate import EvalReport, evaluate
from pipeline.files import write_json
from pipeline.models import Classifier, load_frozen
from pipeline.run import RunConfig, build_student
from pipeline.train import TrainState, distillation_objective, make_task, train
from pipeline.world import World, make_generator, versions

RESULTS = Path(__file__).parent / "results"


def machine_facts(world: World) -> dict[str, Any]:
    """Processor, cores, threads, accelerator, versions, and the commit that was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "versions": versions(),
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # Linux only
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_result(name: str, result: dict[str, Any], world: World) -> Path:
    """Write `results/NAME.json`: the machine's facts, then the result."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"machine": machine_facts(world), **result})
    return path


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one value) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def gaussian_noise(teacher: Classifier, config: RunConfig, num_images: int) -> ArrayImages:
    """The control: pixels from a Gaussian with the teacher's normalisation, balanced labels, clipped and rounded."""
    generator = make_generator(config.seed, "noise")
    noise = torch.randn(num_images, *config.images.shape, generator=generator)
    pixels = to_uint8(teacher.denormalise(noise.to(teacher.mean.device)))
    return ArrayImages(pixels, torch.arange(num_images, device=pixels.device) % config.images.num_classes)


def distil_and_evaluate(config: RunConfig, images: ArrayImages, world: World) -> EvalReport:
    """A student trained on `images` by the recipe of `config.distill`, judged on the real test images."""
    teacher = load_frozen(config.teacher_model, config.images, world.device)
    student = build_student(config, teacher.normalisation).to(world.device)
    task = make_task(
        student,
        distillation_objective(teacher, config.distill),
        config.distill,
        num_classes=config.images.num_classes,
        seed=config.seed,
        purpose="distill",
    )
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState.open(student, config.distill, Path(folder) / "student.state", {})
        train(state, task, images, config.distill)
    test = load_images(config.data.test, "test", Path(config.data.folder), config.images)
    return evaluate(student, teacher, test, config.images.num_classes, config.evaluation, world.device)
