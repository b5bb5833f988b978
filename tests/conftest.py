"""A tiny network and the device that the tests share."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_run import run_in_process, tiny_config
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.runtime.compiler import why_not_compiled
from pipeline.runtime.hardware import keep_freed_memory
from stages import chain

keep_freed_memory()
torch.set_num_threads(1)  # tensors this small only lose by threads, and a reduction's order depends on them


class TinyClassifier(nn.Module):
    """Two convolutions with BatchNorm, any size of image."""

    def __init__(self, channels: int, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where tensors of the tests live: DREAMDISTILL_DEVICE, or the CPU."""
    found = torch.device(os.environ.get("DREAMDISTILL_DEVICE", "cpu"))
    if found.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return found


@pytest.fixture(scope="session")
def compiler(device: torch.device) -> None:
    """Skips a test where nothing can be compiled for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised inside torch's compiler
        if missing := why_not_compiled(device):
            pytest.skip(missing)


@pytest.fixture
def make_classifier(device: torch.device) -> Callable[..., Classifier]:
    """Builds a TinyClassifier whose BatchNorm layers have seen random images; not frozen."""

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
                classifier.network.fc.weight.mul_(5)  # answers that differ between images, as a trained network's do
                for _ in range(20):
                    classifier(torch.rand(32, len(mean), 8, 8).to(device))
        return classifier

    return build


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all outputs of the tiny run, to be copied rather than changed."""
    folder = tmp_path_factory.mktemp("finished")
    run_in_process(chain.main, tiny_config(folder))
    return folder
