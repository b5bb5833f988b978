"""The variables that inversion optimizes in place of its inputs: the inputs themselves, or their Fourier amplitudes."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.synthesis.inputs import InitNoiseConfig, amplitudes

BasisName = Literal["pixels", "fourier"]
# A color of variance 0 would have no inverse.
MIN_VARIANCE = 1e-4


class Basis(Protocol):
    """A linear map between the inputs (N, C, H, W) and the variables that Adam changes."""

    def encode(self, inputs: Tensor) -> Tensor:
        """The variables of inputs."""
        ...

    def decode(self, variables: Tensor) -> Tensor:
        """The inputs of variables."""
        ...

    def clamp_(self, variables: Tensor, low: float, high: float) -> None:
        """Change variables in place so that their inputs are within [low, high]."""
        ...


class PixelBasis:
    """The inputs themselves."""

    def encode(self, inputs: Tensor) -> Tensor:
        """The inputs."""
        return inputs

    def decode(self, variables: Tensor) -> Tensor:
        """The variables."""
        return variables

    def clamp_(self, variables: Tensor, low: float, high: float) -> None:
        """Clamp the inputs, in one pass."""
        variables.clamp_(low, high)


class FourierBasis:
    """The amplitudes of spatial frequencies and decorrelated colors, divided by those of the initial noise.

    Adam moves every variable alike, so that it changes low frequencies and gray the most, as photographs do. In pixels
    it fills images with high frequencies first (Olah et al., 2017, Feature Visualization, doi 10.23915/distill.00007).
    Variables have the shape (N, C, H, W // 2 + 1, 2); their last dimension is the real and the imaginary part.
    """

    def __init__(self, shape: Sequence[int], noise: InitNoiseConfig, device: torch.device) -> None:
        num_channels, height, width = shape
        self._size = height, width
        self._colors = _orthonormal_colors(num_channels).to(device)
        variances = torch.full((num_channels,), 1 - noise.correlation)
        variances[0] += num_channels * noise.correlation
        color_std = variances.clamp_min(MIN_VARIANCE).sqrt()[:, None, None]
        self._scale = (noise.std * color_std * amplitudes(height, width, noise.spectrum)).to(device)

    def encode(self, inputs: Tensor) -> Tensor:
        """The variables of inputs."""
        spectrum = torch.fft.rfft2(_mixed(inputs, self._colors), norm="ortho")
        return torch.view_as_real(spectrum / self._scale).contiguous()

    def decode(self, variables: Tensor) -> Tensor:
        """The inputs of variables."""
        spectrum = torch.view_as_complex(variables) * self._scale
        colors = torch.fft.irfft2(spectrum, s=self._size, norm="ortho")
        return _mixed(colors, self._colors.T)

    def clamp_(self, variables: Tensor, low: float, high: float) -> None:
        """Give variables the amplitudes of their clamped inputs."""
        variables.copy_(self.encode(self.decode(variables).clamp(low, high)))


def _mixed(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Inputs (N, C, H, W) with their colors mixed; as sums, since a matrix product may be rounded to fewer bits."""
    return (inputs[:, None] * matrix[None, :, :, None, None]).sum(2)


def _orthonormal_colors(num_channels: int) -> Tensor:
    """Gray, and num_channels - 1 differences of colors, as the rows of an orthonormal matrix (Helmert's)."""
    rows = torch.ones(num_channels, num_channels).tril(1)
    rows = torch.cat([rows[-1:], rows[:-1]])
    for i in range(1, num_channels):
        rows[i, i] = -i
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms


def build_basis(name: BasisName, shape: Sequence[int], noise: InitNoiseConfig, device: torch.device) -> Basis:
    """The basis of images of a shape (C, H, W)."""
    return FourierBasis(shape, noise, device) if name == "fourier" else PixelBasis()
