"""What all benchmarks share: options, facts of the machine, timing, noise control, summary over seeds, result file."""

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
from pipeline.data.image_sets import ArrayImages, ImageSet, load_images
from pipeline.data.loader import preload
from pipeline.data.shards import read_manifest
from pipeline.distillation.state import TrainState
from pipeline.distillation.train import train
from pipeline.evaluation.evaluate import EvalReport, evaluate
from pipeline.run import RunConfig
from pipeline.runtime.device import synchronize
from pipeline.runtime.distributed import DistributedContext, open_distributed
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.hardware import num_usable_cores, processor_name
from pipeline.runtime.recorder import read_metrics, seconds_of_stages
from pipeline.runtime.seeds import make_generator
from pipeline.session import open_session
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise, to_pixels
from stages import chain

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
# From which published inversion starts.
WHITE = InitNoiseConfig()
# Overrides of configs/cifar10_resnet20.yaml: inversion in pixels, as benchmarks of single parts measure it.
PIXELS = (
    "synthesis.inversion.basis=pixels",
    "synthesis.inversion.lr=0.2",
    "synthesis.inversion.phases.0.steps=120",
    "synthesis.inversion.terms.classification=1",
)


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
    """The commit of this tree, `unknown` without git; raises ValueError when the tree has uncommitted changes.

    Files in `RESULTS` do not count, so that several benchmarks can run one after the other.
    """

    def git(*arguments: str) -> str:
        if shutil.which("git") is None:
            return ""
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False)
        return process.stdout.strip() if process.returncode == 0 else ""

    changes = git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(REPOSITORY)}").splitlines()
    if changes:
        raise ValueError(
            f"{len(changes)} files are not as committed ({changes[0].strip()}, ...); commit or stash them: a result "
            "names the commit that it measured"
        )
    return git("describe", "--always") or "unknown"


@contextmanager
def open_benchmark() -> Iterator[DistributedContext]:
    """The context of this process; exits with an error before any measurement if the tree has uncommitted changes."""
    try:
        measured_commit()
    except ValueError as error:
        sys.exit(f"error: {error}")
    with open_distributed() as context:
        yield context


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows `description`, the docstring of a benchmark, with its line breaks."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the option `--set KEY=VALUE ...`."""
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a command line by name; paths are without their folders."""
    return {k: re.sub(r"[^:]*/", "", str(v)) if isinstance(v, str | Path) else v for k, v in vars(arguments).items()}


def timed(
    context: DistributedContext,
    function: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **keywords: Parameters.kwargs,
) -> tuple[float, Result]:
    """Seconds of a call of `function`, from an idle device to an idle device, and its result."""
    synchronize(context.device)
    started = time.perf_counter()
    result = function(*arguments, **keywords)
    synchronize(context.device)
    return time.perf_counter() - started, result


def compared(rates: Mapping[str, Sequence[float]], unit: str) -> dict[str, Any]:
    """The rates of two programs, by name: all of them, their medians, and the first median divided by the second."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, second = medians.values()
    return {unit: rates, f"median_{unit}": medians, "ratio": first / second}


def print_result(name: str, result: dict[str, Any], context: DistributedContext) -> None:
    """Write the result and print it, one line for each key."""
    path = write_result(name, result, context)
    for key, value in result.items():
        print(f"{key}: {value}")
    print(path)


def write_result(name: str, result: dict[str, Any], context: DistributedContext) -> Path:
    """Write `results/NAME.json`: the facts of the machine, then the result; returns its path."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": machine_facts(context), **result})
    return path


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """For each figure of the runs: its mean, its sample standard deviation (0 for one run) and its values."""
    return {name: _mean_and_deviation([run[name] for run in runs]) for name in runs[0]}


def _mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def run_chain(config: RunConfig, context: DistributedContext) -> dict[str, float]:
    """Run all stages; returns test accuracies, mean scores of the stored images, and seconds of each stage."""
    with open_session(config, context) as session:
        chain.main(session)
    context.barrier()  # rank 0 has written its report
    rounds = range(config.synthesis.rounds)
    report = read_json(config.evaluation_path(rounds[-1]))
    manifests = [read_manifest(config.round_folder(r)) for r in rounds]
    student, teacher = report["student"], report["teacher"]
    return {
        "teacher_top1": teacher["top1"],
        "student_top1": student["top1"],
        "agreement": report["agreement"],
        "student_parameters": student["parameters"] / teacher["parameters"],
        "forward_time_ratio": student["forward_ms"] / teacher["forward_ms"],
        **{f"images_{name}": statistics.fmean(m["scores"][name] for m in manifests) for name in manifests[0]["scores"]},
        **{f"{stage}_s": s for stage, s in seconds_of_stages(read_metrics(config.metrics_path())).items()},
    }


def noise_images(config: RunConfig, noise: InitNoiseConfig) -> ArrayImages:
    """The control: noise in place of the run's synthetic images, with balanced labels, on the CPU.

    There are as many images as in the run, clipped and quantized like synthetic images.
    """
    num_images = config.synthesis.num_images
    inputs = init_noise((num_images, *config.images.shape), noise, make_generator(config.seed, "noise"))
    labels = torch.arange(num_images) % config.student_images.num_classes
    return ArrayImages(to_uint8(to_pixels(inputs)), labels)


def distill_and_evaluate(config: RunConfig, images: ImageSet, context: DistributedContext) -> EvalReport:
    """Train a student on `images` as `config.distill` says, and evaluate it on the real test images."""
    with open_session(config, context) as session, tempfile.TemporaryDirectory() as folder:
        student = session.student(0)
        state = TrainState.open(student, session.config.distill, Path(folder) / "student.state", {})
        train(state, session.distillation, preload(images, context.device), context)
        test = load_images(config.data, "test", config.images, config.class_labels)
        return evaluate(student, session.teacher, test, config.evaluation)
