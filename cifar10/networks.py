"""The networks of the CIFAR-10 literature by name, for any small image."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from cifar10.resnet import ResNet
from cifar10.vgg import VGG
from cifar10.wide_resnet import WideResNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # Depth 6n+2: three stages of n blocks of two convolutions.
    **{
        f"resnet{depth}": partial(ResNet, ((depth - 2) // 6,) * 3, width=16)
        for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110)
    },
    "resnet18": partial(ResNet, (2, 2, 2, 2), width=64),
    "resnet34": partial(ResNet, (3, 4, 6, 3), width=64),
    "vgg11": VGG,
    # Depth 6n+4: three groups of n blocks.
    **{
        f"wrn{depth}_{widen}": partial(WideResNet, (depth - 4) // 6, widen)
        for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2))
    },
}


def build_network(name: str, *, in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    """The network called `name`; raises ValueError with the nearest known name."""
    if name not in NETWORKS:
        close = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"cifar10 has no network {name!r}{hint} (known: {', '.join(NETWORKS)})")
    return NETWORKS[name](in_channels=in_channels, num_classes=num_classes, **options)
