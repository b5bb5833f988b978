"""Random views of images, which the networks see in place of the images.

Every draw comes from a CPU generator, so the same seed gives the same views on every device.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.runtime.config import ConfigError
from pipeline.runtime.device import to_device

# The largest aspect ratio of a random resized crop; the smallest is its inverse.
MAX_ASPECT = 4 / 3


def roll_and_flip(inputs: Tensor, jitter_px: int, flip: bool, generator: torch.Generator) -> Tensor:
    """The batch (N, C, H, W) rolled by up to `jitter_px` in both directions, and mirrored with probability 1/2."""
    if jitter_px:
        down, right = torch.randint(-jitter_px, jitter_px + 1, (2,), generator=generator).tolist()
        inputs = torch.roll(inputs, (down, right), dims=(2, 3))
    if flip and torch.rand((), generator=generator).item() < 0.5:
        inputs = inputs.flip(3)
    return inputs


def check_crop_area(area: tuple[float, float]) -> None:
    """Raise ConfigError unless `area` is a range of shares."""
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"crop_area: {list(area)} must be a range within (0, 1]")


def check_view_scale(scale: float) -> None:
    """Raise ConfigError unless `scale` is a fraction."""
    if not 0 < scale <= 1:
        raise ConfigError(f"view_scale: {scale} must be in (0, 1]")


def scaled_size(scale: float, size: Sequence[int]) -> tuple[int, int]:
    """A fraction of a (height, width), at least two pixels each: a single pixel has no variation."""
    height, width = size
    return max(2, round(height * scale)), max(2, round(width * scale))


def scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A batch (N, C, H, W) scaled to (h, w), without aliasing; the batch itself if it has that size."""
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random views of the training images. mixup and CutMix are drawn per batch, all other transforms per image.

    Attributes:
        crop_area: Range, within (0, 1], from which the area of a random box is drawn, as a fraction of the image's
            area; its aspect ratio is between 3/4 and 4/3. The box is scaled up to the full size (random resized crop,
            Szegedy et al., 2015, arXiv 1409.4842). [1.0, 1.0]: no crop.
        view_scale: Side of the views, as a fraction in (0, 1] of the images' side, for fewer operations in training.
            Networks that pool globally can be evaluated at the full size.
        crop_padding_px: Zero padding in pixels on each side, before a random crop of the original size.
        flip: Whether half of the images are mirrored horizontally.
        brightness: Strength b in [0, 1]: pixels are multiplied by a factor from [1 - b, 1 + b].
        contrast: Strength c in [0, 1]: differences from the mean gray are multiplied by a factor from [1 - c, 1 + c].
        saturation: Strength s in [0, 1]: differences from gray are multiplied by a factor from [1 - s, 1 + s].
        mixup_probability: Probability of mixup for a batch, in [0, 1] (Zhang et al., 2018, arXiv 1710.09412). Together
            with `cutmix_probability` at most 1.
        mixup_alpha: The mixing ratio is drawn from Beta(alpha, alpha); positive.
        cutmix_probability: Probability of CutMix for a batch, in [0, 1] (Yun et al., 2019, arXiv 1905.04899).
        cutmix_alpha: The ratio of the areas is drawn from Beta(alpha, alpha); positive.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    view_scale: float = 1.0
    crop_padding_px: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    mixup_probability: float = 0.0
    mixup_alpha: float = 1.0
    cutmix_probability: float = 0.0
    cutmix_alpha: float = 1.0

    def __post_init__(self) -> None:
        check_crop_area(self.crop_area)
        check_view_scale(self.view_scale)
        if self.crop_padding_px < 0:
            raise ConfigError(f"crop_padding_px: {self.crop_padding_px} must be at least 0")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in [0, 1]")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, f"{name}_probability") <= 1:
                raise ConfigError(f"{name}_probability: {getattr(self, f'{name}_probability')} must be in [0, 1]")
            if getattr(self, f"{name}_alpha") <= 0:
                raise ConfigError(f"{name}_alpha: {getattr(self, f'{name}_alpha')} must be positive")
        if self.mixup_probability + self.cutmix_probability > 1:
            raise ConfigError("mixup_probability, cutmix_probability: their sum must be at most 1")


def augment(
    pixels: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A view of pixels (N, C, H, W) in [0, 1], and its targets: class probabilities of shape (N, num_classes)."""
    count = len(pixels)
    if config.crop_area[0] < 1:
        pixels = random_resized_crop(pixels, config.crop_area, generator)
    pixels = scaled(pixels, scaled_size(config.view_scale, pixels.shape[2:]))
    if config.crop_padding_px:
        pixels = _random_crop(pixels, config.crop_padding_px, generator)
    if config.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        pixels = torch.where(to_device(mirrored, pixels.device)[:, None, None, None], pixels.flip(3), pixels)
    if config.brightness or config.contrast or config.saturation:
        pixels = _color_jitter(pixels, config, generator)
    draw = torch.rand((), generator=generator).item()
    if draw < config.mixup_probability:
        return _mixup(pixels, targets, config.mixup_alpha, generator)
    if draw < config.mixup_probability + config.cutmix_probability:
        return _cutmix(pixels, targets, config.cutmix_alpha, generator)
    return pixels, targets


def random_resized_crop(
    pixels: Tensor, area: tuple[float, float], generator: torch.Generator, size: Sequence[int] | None = None
) -> Tensor:
    """A box of each image of (N, C, H, W), scaled to `size`, by default (H, W) (Szegedy et al., 2015, arXiv 1409.4842).

    The area of the box, as a share of the image's, is drawn from the range `area`, its aspect ratio from 3/4 to 4/3.
    """
    draws = torch.rand(4, len(pixels), generator=generator)
    share = area[0] + (area[1] - area[0]) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * math.log(MAX_ASPECT))
    sides = torch.stack([(share * aspect).sqrt(), (share / aspect).sqrt()]).clamp_max(1)  # width, height
    centers = (2 * draws[2:] - 1) * (1 - sides)
    boxes = torch.zeros(len(pixels), 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, :, 2] = sides[0], sides[1], centers.T
    shape = [*pixels.shape[:2], *(size or pixels.shape[2:])]
    grid = F.affine_grid(to_device(boxes, pixels.device), shape, align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _color_jitter(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    draws = 2 * torch.rand(3, len(pixels), 1, 1, 1, generator=generator) - 1
    brightness, contrast, saturation = (
        1 + strength * to_device(draw, pixels.device)
        for strength, draw in zip((config.brightness, config.contrast, config.saturation), draws, strict=True)
    )
    pixels = pixels * brightness
    gray = pixels.mean(1, keepdim=True)
    pixels = torch.lerp(gray, pixels, saturation)
    return torch.lerp(gray.mean((2, 3), keepdim=True), pixels, contrast).clamp(0, 1)


def _random_crop(pixels: Tensor, padding_px: int, generator: torch.Generator) -> Tensor:
    """Each image padded with zeros and cropped to its size at a random place."""
    count, _, height, width = pixels.shape
    offsets = torch.randint(0, 2 * padding_px + 1, (2, count, 1), generator=generator)
    rows = to_device(offsets[0] + torch.arange(height), pixels.device)
    columns = to_device(offsets[1] + torch.arange(width), pixels.device)
    padded = F.pad(pixels, (padding_px,) * 4)
    batch = torch.arange(count, device=pixels.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    # `contiguous()` would keep the strides of a single channel, which are those of channels-last (see `to_unit`).
    return cropped.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(alpha, alpha); torch's own sampler takes no generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator))).betavariate(alpha, alpha)


def _partner(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return to_device(torch.randperm(len(pixels), generator=generator), pixels.device)


def _mixup(pixels: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Convex combinations of pairs (Zhang et al., 2018, arXiv 1710.09412)."""
    ratio, partner = _beta(alpha, generator), _partner(pixels, generator)
    return torch.lerp(pixels[partner], pixels, ratio), torch.lerp(targets[partner], targets, ratio)


def _cutmix(pixels: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A rectangle of each image replaced by its partner's (Yun et al., 2019, arXiv 1905.04899)."""
    height, width = pixels.shape[2:]
    ratio, partner = _beta(alpha, generator), _partner(pixels, generator)
    side = (1 - ratio) ** 0.5
    center_y, center_x = torch.rand(2, generator=generator).tolist()
    top, bottom = (round((center_y + s * side / 2) * height) for s in (-1, 1))
    left, right = (round((center_x + s * side / 2) * width) for s in (-1, 1))
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[partner][:, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets[partner], targets, kept)
