"""Fixtures that the tests share: a tiny network, the device, and the outputs of a tiny run."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import torch
import torch.nn.functional as F
from tiny_run import RUN_NAME, digests, run_command, run_in_process, tiny_config, write_round
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.runtime import files
from pipeline.runtime.compiler import why_not_compiled
from pipeline.runtime.hardware import keep_freed_memory
from stages import chain

keep_freed_memory()
torch.set_num_threads(1)  # small tensors are slower with more, and the order of a reduction depends on them


class TinyClassifier(nn.Module):
    """Two convolutions with BatchNorm, for any image size."""

    def __init__(self, channels: int, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on what else the machine computes."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, also if the tests run in the background of a shell, which ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tests: DREAMDISTILL_DEVICE, by default the CPU."""
    device = torch.device(os.environ.get("DREAMDISTILL_DEVICE", "cpu"))
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return device


@pytest.fixture(scope="session")
def compiler(device: torch.device) -> None:
    """Skip the test if nothing can be compiled for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised inside torch's compiler
        if missing := why_not_compiled(device):
            pytest.skip(missing)


@pytest.fixture
def make_classifier(device: torch.device) -> Callable[..., Classifier]:
    """Build a TinyClassifier, not frozen, whose BatchNorm statistics come from random images."""

    def build(
        seed: int = 0,
        *,
        num_classes: int = 4,
        mean: tuple[float, ...] = (0.4, 0.5, 0.6),
        std: tuple[float, ...] = (0.2, 0.25, 0.3),
    ) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = Classifier(TinyClassifier(len(mean), num_classes), (mean, std), num_classes).to(device)
            with torch.no_grad():
                classifier.network.fc.weight.mul_(5)  # logits differ between images, as after training
                for _ in range(20):
                    classifier(torch.rand(32, len(mean), 8, 8).to(device))
        return classifier

    return build


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all outputs of the tiny run; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("finished")
    run_in_process(chain.main, tiny_config(folder))
    return folder


@pytest.fixture(scope="session")
def teacher_weights(finished: Path) -> Path:
    """The file of the teacher of the tiny run."""
    return finished / "checkpoints" / RUN_NAME / "teacher.safetensors"


@pytest.fixture
def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a stage that must exit with 2 and leave every file as it was; returns its error message."""

    def run(stage: ModuleType, path: Path, *arguments: str) -> str:
        before = digests(path.parent, exclude=["metrics.jsonl"])
        capsys.readouterr()
        assert run_command(monkeypatch, stage.main, path, *arguments) == 2
        after = digests(path.parent)
        assert {name: after.get(name) for name in before} == before
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    return run


@pytest.fixture
def fill_disk_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that lets the next attempt to write a file, given by its final name, fail as on a full disk."""
    full, opened = set(), files.open_new

    def open_new(path: Path) -> IO[bytes]:
        final_path = next((final for final in full if str(path).startswith(f"{final}.")), None)
        if final_path is None:
            return opened(path)
        full.remove(final_path)
        path.symlink_to("/dev/full")
        return open(path, "wb")

    monkeypatch.setattr(files, "open_new", open_new)
    return full.add


@pytest.fixture(scope="session")
def packed_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """The folder of the packed round of `write_round`, and its pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("packed_round") / "0"
    return folder, write_round(folder)
