"""VGG-11 with BatchNorm for small images (Simonyan and Zisserman, 2015, configuration A), one linear layer on top."""

import torch
from torch import Tensor, nn

# Widths of the 3x3 convolutions; None halves the map.
LAYERS: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class VGG(nn.Module):
    """Convolutions with BatchNorm and ReLU. Layers are named `features.N`, as in public checkpoints.

    `width` is that of the first convolution, the others keep their ratio to it.
    """

    def __init__(self, *, width: int = 64, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        members: list[nn.Module] = []
        channels = in_channels
        for layer in LAYERS:
            if layer is None:
                members.append(nn.MaxPool2d(2, ceil_mode=True))  # small images keep at least one pixel
                continue
            out_channels = layer * width // 64
            members += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
            channels = out_channels
        self.features = nn.Sequential(*members)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        features = self.features(x).mean((2, 3))
        logits: Tensor = self.fc(torch.flatten(features, 1))
        return logits
