"""The `images` section of a configuration, and the sections that name a network."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.runtime.config import ConfigError

SOURCES = ("cifar10", "torchvision", "timm", "python")
# No mean or standard deviation of pixels is larger, in [0, 255] either; `make doctor` tells whether they fit.
MAX_NORMALIZATION = 255.0
# (mean, std), one value per channel.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def identity_normalization(num_channels: int) -> Normalization:
    """Mean 0 and standard deviation 1: pixels stay as they are."""
    return (0.0,) * num_channels, (1.0,) * num_channels


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Shape and classes of the images: every network of a run maps (channels, height, width) to `num_classes` logits.

    Attributes:
        channels: Color channels, 1 (gray) or 3 (RGB).
        height: Height in pixels, at least 1.
        width: Width in pixels, at least 1.
        num_classes: Number of classes of the teacher, at least 2. Labels are 0 to `num_classes` - 1. If there are more
            than 10,000, `classes` must name fewer.
    """

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
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network: its architecture, its weights, and the normalization of its input.

    Attributes:
        source: Where the architecture comes from, as KIND:NAME: `cifar10:resnet20`, `torchvision:resnet50`,
            `timm:resnet50.a1_in1k`, `python:package.module:function` or `python:path/to/file.py:function`.
        options: Keyword arguments of the network's constructor, such as `{width: 8}`.
        weights: A safetensors or torch file, or the name of published weights (torchvision: such as `IMAGENET1K_V1` or
            `DEFAULT`; timm: `DEFAULT`). null: random initial weights.
        mean: Per-channel mean that is subtracted from pixels in [0, 1]; give it together with `std`. null: that of the
            published weights, else 0 (for the student, the teacher's).
        std: Per-channel standard deviation that pixels are divided by after `mean` is subtracted; positive. null: that
            of the published weights, else 1 (for the student, the teacher's).
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
            raise ConfigError(f"std: {list(self.std)} must be one positive value per channel")
        for name in ("mean", "std"):
            values = getattr(self, name) or ()
            if not all(abs(value) <= MAX_NORMALIZATION for value in values):
                raise ConfigError(f"{name}: {list(values)} is not for pixels in [0, 1]; correct it")
