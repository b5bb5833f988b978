"""What every benchmark shares: the facts of the machine, the noise control, the summary over seeds, the result file."""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from pipeline.data.codec import to_uint8
from pipeline.data.image_sets import ArrayImages, load_images
from pipeline.data.loader import preload
from pipeline.data.shards import read_manifest
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import Task, build_distillation_loss
from pipeline.distillation.train import train
from pipeline.evaluation.evaluate import EvalReport, evaluate
from pipeline.models.classifier import load_frozen
from pipeline.run import RunConfig
from pipeline.runtime.device import synchronize
from pipeline.runtime.distributed import DistributedContext, open_distributed
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.hardware import num_usable_cores, processor_name
from pipeline.runtime.recorder import read_metrics, seconds_of_stages
from pipeline.runtime.seeds import make_generator
from pipeline.session import build_student, open_session, resolve
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise, to_pixels
from stages import chain

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"


def machine_facts(context: DistributedContext) -> dict[str, Any]:
    """Processor, cores, threads, accelerator, versions, and the commit that was measured."""
    return {
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": num_usable_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None,
        "versions": versions(),
        "commit": measured_commit(),
    }


def measured_commit() -> str:
    """The commit of this tree, `unknown` without git; raises ValueError when the tree is not what was committed.

    Results that are written one after the other do not count as changes.
    """

    def git(*arguments: str) -> str:
        if shutil.which("git") is None:
            return ""
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changes = git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(REPOSITORY)}").splitlines()
    if changes:
        raise ValueError(
            f"{len(changes)} files are not as committed ({changes[0].strip()}, ...); commit or stash them: a result "
            "names the commit that it measured"
        )
    return git("describe", "--always") or "unknown"


@contextmanager
def open_benchmark() -> Iterator[DistributedContext]:
    """The context that is measured; refuses a tree with changes before anything is."""
    try:
        measured_commit()
    except ValueError as error:
        sys.exit(f"error: {error}")
    with open_distributed() as context:
        yield context


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a command line, files without their folders."""
    return {k: re.sub(r"[^:]*/", "", v) if isinstance(v, str) else v for k, v in vars(arguments).items()}


def timed(
    context: DistributedContext, work: Callable[Parameters, Result], *arguments: Parameters.args, **keywords: Parameters.kwargs
) -> tuple[float, Result]:
    """Seconds of `work`, from an idle device to an idle device, and its result."""
    synchronize(context.device)
    started = time.perf_counter()
    result = work(*arguments, **keywords)
    synchronize(context.device)
    return time.perf_counter() - started, result


def compared(rates: Mapping[str, Sequence[float]], unit: str) -> dict[str, Any]:
    """Two things measured in turn, by name: all rates, their medians, and the first median over the second."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, second = medians.values()
    return {unit: rates, f"median_{unit}": medians, "ratio": first / second}


def print_result(name: str, result: dict[str, Any], context: DistributedContext) -> None:
    """Write the result and print it, a figure a line."""
    path = write_result(name, result, context)
    for key, value in result.items():
        print(f"{key}: {value}")
    print(path)


def write_result(name: str, result: dict[str, Any], context: DistributedContext) -> Path:
    """Write `results/NAME.json`: the machine's facts, then the result."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"machine": machine_facts(context), **result})
    return path


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """For each figure of the runs: mean, sample standard deviation (0 for one run) and the values themselves."""
    return {name: _mean_and_deviation([run[name] for run in runs]) for name in runs[0]}


def _mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def run_chain(config: RunConfig, context: DistributedContext) -> dict[str, float]:
    """The whole run; accuracies on the test images, shares of the stored images, and seconds of each stage."""
    with open_session(config, context) as session:
        chain.main(session)
    context.barrier()  # the leader has written its report
    rounds = range(config.synthesis.rounds)
    report = read_json(config.evaluation_path(rounds[-1]))
    manifests = [read_manifest(config.round_folder(r)) for r in rounds]
    return {
        "teacher_top1": report["teacher"]["top1"],
        "student_top1": report["student"]["top1"],
        "agreement": report["agreement"],
        "student_parameters": report["student"]["parameters"] / report["teacher"]["parameters"],
        **{
            f"images_{name}": statistics.fmean(m["scores"][name] for m in manifests)
            for name in manifests[0]["scores"]
        },
        **{f"{stage}_s": s for stage, s in seconds_of_stages(read_metrics(config.metrics_path())).items()},
    }


def gaussian_noise(config: RunConfig) -> ArrayImages:
    """The control: as many images as the run has, of the noise that published inversion starts from, labels balanced.

    They are clipped and rounded as synthetic ones are, and lie on the CPU.
    """
    count = config.synthesis.num_images
    noise = init_noise((count, *config.images.shape), InitNoiseConfig(), make_generator(config.seed, "noise"))
    return ArrayImages(to_uint8(to_pixels(noise)), torch.arange(count) % config.images.num_classes)


def distil_and_evaluate(config: RunConfig, images: ArrayImages, context: DistributedContext) -> EvalReport:
    """A student trained on `images` by the recipe of `config.distill`, judged on the real test images."""
    config = resolve(config, context.device)
    teacher = load_frozen(config.teacher_model, config.images, context.device)
    student = build_student(config, teacher.normalization).to(context.device)
    task = Task(
        student,
        build_distillation_loss(teacher, config.distill),
        config.distill,
        num_classes=config.images.num_classes,
        seed=config.seed,
        purpose="distill",
    )
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState.open(student, config.distill, Path(folder) / "student.state", {})
        train(state, task, preload(images, context.device), config.distill, context)
    test = load_images(config.data, "test", config.images)
    return evaluate(student, teacher, test, config.images.num_classes, config.evaluation, context.device)
