"""A run small enough for a test: eight-pixel digits, networks of a few hundred weights, sixty synthetic images."""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.data.codec import encode_image
from pipeline.data.growth import growth_folder, join_growth
from pipeline.data.parts import Sample, write_part
from pipeline.data.shards import pack
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator
from pipeline.session import open_session
from stages.commands import find_command, parse_words
from stages.stage import Stage, run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
RUN_NAME = "tiny"
# Overrides of `write_config`: two rounds, the second with competition.
TWO_ROUNDS = {
    "synthesis__rounds": 2,
    "synthesis__batch_size": 15,
    "synthesis__inversion__terms__competition": 10.0,
    "distill__batch_size": 15,
    "distill__steps": 6,
}
# Outputs that tests compare must not depend on the machine.
PLAIN = {"precision": "float32", "compile": False, "cuda_graphs": False}
# A parameter for tests of compiled steps.
CUDA_GRAPHS = pytest.param(
    True, marks=pytest.mark.skipif(os.environ.get("DREAMDISTILL_DEVICE") != "cuda", reason="graphs are CUDA's")
)


def remove_manifest(folder: Path) -> None:
    """Make a complete set one that is not packed yet, by its files."""
    for path in folder.glob("manifest*.json"):
        path.unlink()


class FreeCoresContext(DistributedContext):
    """A process on the CPU that acts as if its device left the cores free, as a GPU does."""

    leaves_cores_free = True


def plain_config(folder: Path) -> dict[str, Any]:
    """The tiny run as plain YAML data, with its outputs under `folder`."""
    return {
        "images": {"channels": 1, "height": 8, "width": 8, "num_classes": 10},
        "data": {"train": "sklearn:digits", "test": "sklearn:digits"},
        "teacher": {"source": "cifar10:resnet8", "options": {"width": 4}, "mean": [0.3], "std": [0.37]},
        "teacher_training": {"steps": 42, "batch_size": 64, "lr": 0.1, **PLAIN},
        "student": {"source": "cifar10:resnet8", "options": {"width": 2}},
        "synthesis": {
            "num_images": 60,
            "batch_size": 20,
            "inversion": {
                "phases": [{"steps": 4}],
                "jitter_px": 1,
                "terms": {"classification": 1.0, "feature_divergence": 5.0},
                **PLAIN,
            },
        },
        "distill": {"steps": 3, "batch_size": 20, "lr": 0.1, **PLAIN},
        "shards_dir": str(folder / "shards"),
        "checkpoints_dir": str(folder / "checkpoints"),
    }


def write_config(folder: Path, **overrides: Any) -> Path:
    """A config file in `folder`; a double underscore in a keyword is a dot in the key, None removes the key."""
    plain = plain_config(folder)
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
        if value is None:
            del node[leaf]
    path = folder / f"{RUN_NAME}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(plain))
    return path


def tiny_config(folder: Path, **overrides: Any) -> RunConfig:
    """The tiny run with overrides, as `write_config` takes them."""
    return load_run(write_config(folder, **overrides))


def run_in_process(stage: Callable[..., None], config: RunConfig, round_index: int | None = None) -> None:
    """Run one stage as a single process on `DREAMDISTILL_DEVICE`, by default the CPU."""
    context = DistributedContext(device=torch.device(os.environ.get("DREAMDISTILL_DEVICE", "cpu")))
    with open_session(config, context) as session:
        stage(session, round_index)


def run_command(monkeypatch: Any, stage: Stage, path: Path, *arguments: str) -> int:
    """The exit code of a stage's command line, run in this process."""
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    try:
        run_stage(stage, parse_words(find_command("run"), ["--config", str(path), *arguments]))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def stage_command(command: str, path: Path, *, num_processes: int = 1, arguments: Sequence[str] = ()) -> list[str]:
    """The command line of a command, as in the Makefile."""
    processes = ["--processes", str(num_processes)] if num_processes > 1 else []
    return [sys.executable, "-m", "stages", command, "--config", str(path), *processes, *arguments]


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a command in the repository, on the CPU, with one thread per process; its output is dropped."""
    environment = os.environ | {"DREAMDISTILL_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a command; its exit code."""
    try:
        return process.wait(timeout=120)
    finally:
        process.kill()


def with_weights(path: Path | str, **overrides: Any) -> dict[str, Any]:
    """Overrides of `write_config` for a teacher with weights in place of one that the run trains."""
    return {"teacher_training": None, "teacher__weights": str(path), **overrides}


def copy_run(source: Path, folder: Path, **overrides: Any) -> Path:
    """A config file in `folder`, beside a copy of all outputs of the run in `source`."""
    for outputs in ("shards", "checkpoints"):
        if (source / outputs).exists():
            shutil.copytree(source / outputs, folder / outputs)
    return write_config(folder, **overrides)


def digests(folder: Path, *, exclude: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by its relative path, without the file names in `exclude`."""
    excluded = set(exclude)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in excluded
    }


def modification_times(folder: Path) -> dict[str, int]:
    """Time in ns of the last change of every file under `folder`, by its relative path."""
    times = {}
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):  # a running process may rename it
            if path.is_file():
                times[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return times


def make_samples(
    labels: Sequence[int], *, channels: int = 1, image_format: Any = "png", first_image: int = 0
) -> tuple[list[Sample], torch.Tensor]:
    """Samples of random eight-pixel images with these labels, and their pixels, uint8 (N, C, 8, 8)."""
    generator = make_generator(0, "test images", first_image)
    pixels = torch.randint(0, 256, (len(labels), channels, 8, 8), dtype=torch.uint8, generator=generator)
    samples = [
        Sample(
            number=first_image + i,
            label=label,
            image=encode_image(image, image_format, 95),
            metadata={"batch": 0, "label": label, "teacher_probability": 0.5, "teacher_top1": i % 2 == 0},
        )
        for i, (label, image) in enumerate(zip(labels, pixels, strict=True))
    ]
    return samples, pixels


def make_facts(*, num_classes: int = 10, channels: int = 1, image_format: str = "png", images_per_shard: int = 1000):
    """The facts that `pack` writes into the manifest."""
    return {
        "round": 0,
        "teacher": "cifar10:resnet8",
        "num_classes": num_classes,
        "classes": list(range(num_classes)),
        "class_titles": [str(label) for label in range(num_classes)],
        "shape": [channels, 8, 8],
        "image_format": image_format,
        "images_per_shard": images_per_shard,
        "versions": {},
    }


# The set that `write_round` packs.
ROUND_IMAGES, ROUND_CLASSES = 36, 12


def write_round(folder: Path, *, first_image: int = 0) -> torch.Tensor:
    """Pack a round of 36 color images, label = number modulo 12, in shards of two; returns the pixels (N, 3, 8, 8)."""
    labels = [(first_image + i) % ROUND_CLASSES for i in range(ROUND_IMAGES)]
    samples, pixels = make_samples(labels, channels=3, first_image=first_image)
    write_part(folder, 0, samples, "png")
    pack(
        folder,
        [0],
        {"seed": 0, "first_image": first_image},
        make_facts(num_classes=ROUND_CLASSES, channels=3, images_per_shard=2),
    )
    return pixels


def write_grown_round(folder: Path) -> torch.Tensor:
    """Pack a round as `write_round` does, and let it grow by 36 images; returns the pixels (2 N, 3, 8, 8)."""
    first = write_round(folder)
    second = write_round(growth_folder(folder), first_image=ROUND_IMAGES)
    join_growth(folder)
    return torch.cat([first, second])
