"""The inputs that inversion optimizes: their space, and their initial noise.

The space is the same for every teacher, so that learning rates and weights do not depend on a teacher's normalization:
pixels = INPUT_MEAN + INPUT_STD * inputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.runtime.config import ConfigError

# Roughly the channel means of ImageNet's usual normalization, in which the published settings are stated.
INPUT_MEAN, INPUT_STD = 0.45, 0.225


def to_pixels(inputs: Tensor) -> Tensor:
    """Pixels of inputs of any shape; in [0, 1] if the inputs are within `input_range`."""
    return INPUT_MEAN + INPUT_STD * inputs


def input_range() -> tuple[float, float]:
    """The inputs of a black and of a white pixel."""
    return -INPUT_MEAN / INPUT_STD, (1 - INPUT_MEAN) / INPUT_STD


@dataclass(frozen=True, kw_only=True)
class InitNoiseConfig:
    """The Gaussian noise that inversion starts from; white by default, as in DeepInversion.

    Photographs have a `spectrum` of about 1 (Field, 1987) and strongly correlated channels. Noise that shares these
    properties reaches a finished image in fewer steps.

    Attributes:
        spectrum: Exponent s of the amplitude over the spatial frequency f, which falls as 1 / f^s; at least 0.
            0: white noise.
        correlation: Correlation of every two color channels, in [0, 1].
        std: Standard deviation of the noise around 0, positive, for inputs x, where pixels = 0.45 + 0.225 x.
    """

    spectrum: float = 0.0
    correlation: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spectrum) and self.spectrum >= 0):
            raise ConfigError(f"spectrum: {self.spectrum} must be finite and at least 0")
        if not 0 <= self.correlation <= 1:
            raise ConfigError(f"correlation: {self.correlation} must be in [0, 1]")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"std: {self.std} must be finite and positive")


def init_noise(shape: tuple[int, int, int, int], config: InitNoiseConfig, generator: torch.Generator) -> Tensor:
    """Initial inputs of shape (N, C, H, W), on the CPU."""
    inputs = torch.randn(shape, generator=generator)
    if config.correlation:
        shared = torch.randn(shape[0], 1, *shape[2:], generator=generator)
        inputs = math.sqrt(config.correlation) * shared + math.sqrt(1 - config.correlation) * inputs
    if config.spectrum:
        inputs = _colored(inputs, config.spectrum)
    return config.std * inputs


def _colored(white: Tensor, spectrum: float) -> Tensor:
    """White noise (N, C, H, W) filtered to amplitudes of 1 / f^spectrum, scaled to a standard deviation of 1."""
    height, width = white.shape[2:]
    factors = _frequencies(height, width) ** -spectrum
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * factors, s=(height, width))
    return filtered / filtered.std()


def amplitudes(height: int, width: int, spectrum: float) -> Tensor:
    """Amplitudes 1 / f^spectrum of the frequencies of `rfft2`, (H, W // 2 + 1), of noise of standard deviation 1."""
    factors = _frequencies(height, width) ** -spectrum
    both_sides = factors[:, [min(i, width - i) for i in range(width)]]
    return factors / both_sides.square().mean().sqrt()


def _frequencies(height: int, width: int) -> Tensor:
    """The spatial frequencies of `rfft2`, (H, W // 2 + 1), in cycles per pixel; the mean counts as the lowest one."""
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequencies = torch.hypot(vertical, horizontal.expand(height, -1))
    frequencies[0, 0] = 1 / max(height, width)
    return frequencies
