"""The `images` section of a configuration, and the sections that name a network."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.runtime.config import ConfigError

SOURCES = ("cifar10", "torchvision", "timm", "python")


# (mean, std), one value a channel.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What every network of a run sees and says: (channels, height, width) pixels in, `num_classes` logits out."""

    channels: int
    height: int
    width: int
    num_classes: int

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.num_classes < 2:
            raise ConfigError(f"num_classes: {self.num_classes} must be at least 2")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where a network comes from: `cifar10:resnet20`, `torchvision:resnet50`, `timm:NAME`, `python:module:function`.

    `options` go to its constructor. `weights` is a safetensors or torch file, or (torchvision, timm) the name of
    published weights such as `DEFAULT`. `mean` and `std` normalise pixels in [0, 1], one value a channel; without
    them the published weights' own are used, or mean 0 and deviation 1.
    """

    source: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        kind, _, name = self.source.partition(":")
        if kind not in SOURCES or not name:
            raise ConfigError(f"source: {self.source!r} must be KIND:NAME with KIND one of {', '.join(SOURCES)}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean, std: give both or neither")
        if self.std is not None and not (self.std and min(self.std) > 0):
            raise ConfigError(f"std: {list(self.std)} must be one positive value a channel")
