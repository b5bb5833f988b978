"""Dead leaves: images of random shapes that cover one another, with edges and colors like those of photographs."""

import math

import torch
from torch import Tensor

# Radii of leaves, as a fraction of the image's short side; their density falls as 1 / radius^3, so that the images look
# the same at every scale (Lee, Mumford and Huang, 2001, Occlusion models for natural images). Each image has a smallest
# radius of its own, so that some show a few large shapes and others many small ones.
SMALLEST_RADIUS, LARGEST_RADIUS = (1 / 32, 1 / 3), 1 / 2
NUM_LEAVES = 100
# Largest ratio of the axes of a leaf, an ellipse.
MAX_ASPECT = 3.0
# Mean of the colors, their standard deviations between images and within one, and the correlation of the channels:
# roughly those of photographs.
MEAN, STD_OF_IMAGES, STD_OF_LEAVES, CORRELATION = 0.45, 0.15, 0.22, 0.85
# Standard deviation of the change of a color from the center of a leaf to its edge.
SHADING = 0.1
# Images that are made at a time.
PIECE = 256


def dead_leaves(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Images of the dead leaves model, uint8 (count, C, H, W) on the CPU, for the `shape` (C, H, W)."""
    images = torch.empty(count, *shape, dtype=torch.uint8)
    for piece in torch.split(images, PIECE):
        piece.copy_(_painted(len(piece), shape, generator).clamp(0, 1).mul(255).round())
    return images


def _painted(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Pixels (count, C, H, W), about in [0, 1], painted from the leaf at the back to that in front."""
    channels, height, width = shape
    rows = torch.arange(height)[:, None] / min(height, width)
    columns = torch.arange(width) / min(height, width)
    smallest = _between(*SMALLEST_RADIUS, torch.rand(count, 1, 1, generator=generator))
    base = MEAN + STD_OF_IMAGES * _colors(count, channels, generator)
    canvas = base.expand(count, *shape)
    for _ in range(NUM_LEAVES):
        radius, turn, stretch, center_row, center_column = torch.rand(5, count, 1, 1, generator=generator)
        radius = _radius(smallest, radius)
        stretch = _between(MAX_ASPECT**-0.5, MAX_ASPECT**0.5, stretch)
        down = (rows - center_row * height / min(height, width)) / radius
        right = (columns - center_column * width / min(height, width)) / radius
        sine, cosine = (math.pi * turn).sin(), (math.pi * turn).cos()
        along, across = (cosine * down + sine * right) * stretch, (cosine * right - sine * down) / stretch
        is_inside = along.square() + across.square() < 1
        shade = SHADING * torch.randn(count, 1, 1, generator=generator) * along
        color = base + STD_OF_LEAVES * _colors(count, channels, generator) + shade[:, None]
        canvas = torch.where(is_inside[:, None], color, canvas)
    return canvas


def _radius(smallest: Tensor, uniform: Tensor) -> Tensor:
    """Radii with a density of 1 / radius^3, by the inverse of their distribution function."""
    return torch.lerp(smallest**-2, torch.full_like(smallest, LARGEST_RADIUS**-2), uniform).rsqrt()


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    """Numbers from `low` to `high`, uniform on a logarithmic scale."""
    return low * (high / low) ** uniform


def _colors(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """Colors (count, C, 1, 1) of mean 0 and standard deviation 1, with correlated channels."""
    shared = torch.randn(count, 1, 1, 1, generator=generator)
    own = torch.randn(count, channels, 1, 1, generator=generator)
    return math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own
