"""Wide residual networks (Zagoruyko and Komodakis, 2016, arXiv 1605.07146): depth 6n+4, pre-activation blocks."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; where the shape changes, a 1x1 convolution carries the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.convShortcut = (  # camel case, as in public checkpoints
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + inner


class WideResNet(nn.Module):
    """Three groups of `blocks` blocks, widths 16, 32 and 64 times `widen`; names as public checkpoints have them."""

    def __init__(self, blocks: int, widen: int, *, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        channels = 16
        for i in range(3):
            width = 16 * widen * 2**i
            members = []
            for j in range(blocks):
                members.append(WideBlock(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width
            group = nn.Sequential(OrderedDict(layer=nn.Sequential(*members)))
            self.add_module(f"block{i + 1}", group)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.conv1(x)
        for i in range(3):
            x = self.get_submodule(f"block{i + 1}")(x)
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits
