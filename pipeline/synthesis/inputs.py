"""The canvas of inversion: the space it lives in, and the noise it starts from.

The space is the same for every teacher, so that learning rates and weights mean the same whatever a teacher's own
normalisation: pixels = CANVAS_MEAN + CANVAS_STD * canvas.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.runtime.config import ConfigError

# About the means over the channels of ImageNet's usual normalisation, in which the published settings are stated.
CANVAS_MEAN, CANVAS_STD = 0.45, 0.225


def to_pixels(canvas: Tensor) -> Tensor:
    """Pixels, in [0, 1] where the canvas is clamped, of a canvas of any shape."""
    return CANVAS_MEAN + CANVAS_STD * canvas


def canvas_range() -> tuple[float, float]:
    """The canvas values of the darkest and the brightest pixel."""
    return -CANVAS_MEAN / CANVAS_STD, (1 - CANVAS_MEAN) / CANVAS_STD


@dataclass(frozen=True, kw_only=True)
class CanvasConfig:
    """Gaussian noise of a standard `deviation` around the canvas's zero; by default white, as published.

    Its amplitude falls with the spatial frequency f as 1 / f^`spectrum`, and every two colour channels have that
    `correlation`. Photographs have a spectrum of about 1 (Field, 1987) and strongly correlated channels, so a start
    like them leaves fewer steps to go.
    """

    spectrum: float = 0.0
    correlation: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spectrum) and self.spectrum >= 0):
            raise ConfigError(f"spectrum: {self.spectrum} must be finite and at least 0")
        if not 0 <= self.correlation <= 1:
            raise ConfigError(f"correlation: {self.correlation} must be in [0, 1]")
        if not (math.isfinite(self.deviation) and self.deviation > 0):
            raise ConfigError(f"deviation: {self.deviation} must be finite and positive")


def draw_canvas(shape: tuple[int, int, int, int], config: CanvasConfig, generator: torch.Generator) -> Tensor:
    """Noise of shape (N, C, H, W), on the CPU."""
    canvas = torch.randn(shape, generator=generator)
    if config.correlation:
        shared = torch.randn(shape[0], 1, *shape[2:], generator=generator)
        canvas = math.sqrt(config.correlation) * shared + math.sqrt(1 - config.correlation) * canvas
    if config.spectrum:
        canvas = _coloured(canvas, config.spectrum)
    return config.deviation * canvas


def _coloured(white: Tensor, spectrum: float) -> Tensor:
    """White noise (N, C, H, W) filtered to amplitudes of 1 / f^spectrum, with a deviation of 1 again."""
    height, width = white.shape[2:]
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = torch.hypot(vertical, horizontal.expand(height, -1))
    frequency[0, 0] = 1 / max(height, width)  # the mean, as the lowest of the others
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-spectrum, s=(height, width))
    return filtered / filtered.std()
