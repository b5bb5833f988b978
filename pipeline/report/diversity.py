"""How much the images of a class differ from each other, and a warning when they hardly do.

The distance of two images is the root mean square of the difference of their pixels, after both are reduced to at most
REDUCED_PX pixels a side: fine noise would hide that two images show the same. It is stated in units of the distance
that two unrelated images of the same contrast have, sqrt(2) times the standard deviation of the pixels of an image. So
0 means copies, 1 means unrelated.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.codec import to_unit

REDUCED_PX = 16
# A class is collapsed under this mean distance of its images; an image is a copy of another one under this distance.
COLLAPSED, COPY = 0.25, 0.1


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean distances of images of one class (`within`, by label; None for a single image), and of different classes.

    `num_images` were compared, `num_copies` of which have a copy in their own class.
    """

    within: dict[int, float | None]
    between: float | None
    num_images: int
    num_copies: int

    @property
    def collapsed(self) -> list[int]:
        """The labels of the classes whose images hardly differ."""
        return [label for label, distance in self.within.items() if distance is not None and distance < COLLAPSED]

    @property
    def mean(self) -> float | None:
        """The mean over classes of `within`."""
        distances = [distance for distance in self.within.values() if distance is not None]
        return sum(distances) / len(distances) if distances else None


def measure_diversity(batches: Iterable[Tensor], labels: Tensor) -> Diversity:
    """The diversity of images with labels (N,), which come in uint8 batches (n, C, H, W) of any size."""
    distances = _distances(torch.cat([_reduced(images) for images in batches]))
    is_same = labels[:, None] == labels[None, :]
    is_other_image = ~torch.eye(len(labels), dtype=torch.bool)
    within = {}
    for label in sorted(set(labels.tolist())):
        rows = labels == label
        pairs = distances[rows][:, rows][is_other_image[rows][:, rows]]
        within[label] = pairs.mean().item() if len(pairs) else None
    nearest = distances.masked_fill(~(is_same & is_other_image), torch.inf).amin(1)
    return Diversity(
        within=within,
        between=None if is_same.all() else distances[~is_same].mean().item(),
        num_images=len(labels),
        num_copies=int((nearest < COPY).sum()),
    )


def _reduced(images: Tensor) -> Tensor:
    """Pixels in [0, 1] (n, C, h, w), h and w at most REDUCED_PX, of uint8 images (n, C, H, W)."""
    size = [min(REDUCED_PX, length) for length in images.shape[2:]]
    return F.interpolate(to_unit(images), size=size, mode="area")


def _distances(reduced: Tensor) -> Tensor:
    """The distances (N, N) of all pairs, in units of those of unrelated images; 0 for images without contrast."""
    contrast = reduced.var((2, 3), correction=0).mean().sqrt()
    flat = reduced.flatten(1).double()  # exact enough for copies, whose distance is a difference of large numbers
    unit = (2 * flat.shape[1]) ** 0.5 * contrast
    distances: Tensor = torch.cdist(flat, flat)
    in_units: Tensor = distances / unit.clamp_min(1e-9)
    return in_units
