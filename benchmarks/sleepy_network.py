"""A network whose passes take a given time, by sleeping, so that ranks of any speed share a few cores."""

import time
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cifar10.resnet import ResNet
from pipeline.runtime.environment import ranks_of_torchrun


class SleepyResNet(ResNet):
    """A small ResNet-8 of gray images of ten classes; a pass takes `pass_s` seconds, on `slow_rank` `slow_pass_s`."""

    def __init__(self, pass_s: float = 0.0, slow_rank: int | None = None, slow_pass_s: float = 0.0) -> None:
        super().__init__((1, 1, 1), width=4, in_channels=1, num_classes=10)
        rank, *_ = ranks_of_torchrun()
        self.pass_s = slow_pass_s if rank == slow_rank else pass_s

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, H, W)."""
        time.sleep(self.pass_s)
        return super().forward(x)


def sleepy_teacher(folder: Path, **options: Any) -> dict[str, Any]:
    """The config of a teacher with these options, whose random weights are written to `folder`."""
    weights = folder / "sleepy.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(SleepyResNet().state_dict(), weights)
    source = f"python:{Path(__file__)}:SleepyResNet"
    return {"source": source, "options": options, "weights": str(weights), "mean": [0.3], "std": [0.37]}
