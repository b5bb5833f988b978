"""How good a set of synthetic images is, in the features of a network: alone, and beside real images."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.evaluation.features import Features
from pipeline.models.config import ModelConfig
from pipeline.runtime.config import ConfigError

# The most images of a set that are scored, and of which neighbors are searched for: N images have N^2 distances.
MAX_IMAGES, MAX_NEIGHBORHOODS = 10_000, 5_000
# The most images of a class in the diversity of a class.
MAX_PER_CLASS = 100
# Subsets of the kernel distance and their largest size, the defaults of torchmetrics.
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1_000
# Rows of a matrix of distances that are computed at once.
DISTANCE_ROWS = 1_000


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """How `make quality` scores a set of synthetic images.

    Attributes:
        shards: Folder of the set, as `make synthesize` writes it. null: that of the round.
        network: The network whose features are compared; needs `weights`. null: the verifier if there is one, else the
            teacher.
        num_neighbors: Neighbors within whose distance an image counts as covered, at least 1.
    """

    shards: str | None = None
    network: ModelConfig | None = None
    num_neighbors: int = 5

    def __post_init__(self) -> None:
        if self.network is not None and self.network.weights is None:
            raise ConfigError("network.weights: missing; the features of an untrained network mean nothing")
        if self.num_neighbors < 1:
            raise ConfigError(f"num_neighbors: {self.num_neighbors} must be at least 1")


def smallest_class(features: Features) -> int:
    """The number of images of the smallest class that has any, at most `MAX_PER_CLASS`."""
    return min(MAX_PER_CLASS, int(torch.bincount(features.labels)[features.labels].min()))


def own_scores(features: Features, num_per_class: int) -> dict[str, float]:
    """Scores of one set, without other images.

    `top1` and `probability` are of the labels. `class_distance` is the mean distance of two images of a class divided
    by that of two images of different classes. `vendi` is the mean `vendi_score` of `num_per_class` images of a class.
    What compares two images is left out if there are no two of a class, or of different classes.
    """
    probabilities = features.logits.softmax(1).gather(1, features.labels[:, None])
    scores = {
        "top1": (features.logits.argmax(1) == features.labels).double().mean().item(),
        "probability": probabilities.double().mean().item(),
    }
    within, between = _mean_distances(features)
    if not math.isnan(within) and between > 0:
        scores["class_distance"] = within / between
    if num_per_class > 1:
        labels = sorted(set(features.labels.tolist()))
        classes = [features.values[features.labels == label][:num_per_class] for label in labels]
        scores |= {"vendi": sum(map(vendi_score, classes)) / len(classes), "vendi_images": num_per_class}
    return scores


def vendi_score(values: Tensor) -> float:
    """The effective number of different images among features (N, D): 1 if all are equal, N if all are orthogonal.

    It is exp(-sum of l ln l) over the eigenvalues l of K / N, with the cosine similarities K (Friedman and Dieng, 2023,
    arXiv 2210.02410).
    """
    directions = nn.functional.normalize(values.double(), dim=1)
    if len(directions) > directions.shape[1]:
        directions = directions.T  # the other Gram matrix has the same eigenvalues but for zeros
    eigenvalues = torch.linalg.eigvalsh(directions @ directions.T / len(values))
    eigenvalues = eigenvalues[eigenvalues > 0]
    return float((-(eigenvalues * eigenvalues.log()).sum()).exp())


def _mean_distances(features: Features) -> tuple[float, float]:
    """The mean distance of two images of one class, and of two images of different classes; NaN if there are none."""
    order = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(0))[:MAX_NEIGHBORHOODS]
    values, labels = features.values[order], features.labels[order]
    distances = _distances(values, values)
    same = labels[:, None] == labels
    num_same = same.sum().item() - len(labels)  # without the distance of an image from itself
    total, total_same = distances.sum().item(), distances[same].sum().item()
    num_other = same.numel() - num_same - len(labels)
    return total_same / num_same if num_same else math.nan, (total - total_same) / num_other if num_other else math.nan


def require_comparable(num_synthetic: int, num_real: int, num_neighbors: int) -> None:
    """Raise ValueError when torchmetrics is missing, or when a set has too few images for `compare_sets`."""
    if min(num_synthetic, num_real) <= num_neighbors:
        raise ValueError(
            f"evaluation.quality.num_neighbors: {num_neighbors} neighbors need more images than the {num_synthetic} "
            f"synthetic and {num_real} real ones; lower it"
        )
    _import_torchmetrics()


def compare_sets(synthetic: Tensor, real: Tensor, num_neighbors: int) -> dict[str, float]:
    """Distances of two sets of features, (N, D) and (M, D), and how each covers the other.

    Raises what `require_comparable` raises.
    """
    require_comparable(len(synthetic), len(real), num_neighbors)
    count = min(len(synthetic), len(real), MAX_NEIGHBORHOODS)
    generator = torch.Generator().manual_seed(0)
    few_synthetic, few_real = (
        values[torch.randperm(len(values), generator=generator)[:count]] for values in (synthetic, real)
    )
    return {
        "frechet_distance": frechet_distance(synthetic, real),
        "kernel_distance": kernel_distance(synthetic, real),
        **neighborhood_scores(few_synthetic, few_real, num_neighbors),
    }


class _Given(nn.Module):
    """Features in place of a network that computes them, for torchmetrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, values: Tensor) -> Tensor:
        return values


def frechet_distance(synthetic: Tensor, real: Tensor) -> float:
    """The squared Frechet distance of the Gaussians of two sets of features (N, D) and (M, D), by torchmetrics.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with means m and covariances S (Heusel et al., 2017, arXiv 1706.08500).
    """
    metric = _import_torchmetrics().fid.FrechetInceptionDistance(feature=_Given(synthetic.shape[1]))
    metric.update(synthetic.double(), real=False)
    metric.update(real.double(), real=True)
    return max(0.0, float(metric.compute()))


def kernel_distance(synthetic: Tensor, real: Tensor) -> float:
    """The squared maximum mean discrepancy of two sets of features with a cubic kernel, by torchmetrics.

    The kernel is (x y / D + 1)^3; the mean over subsets is unbiased, so that it can be below 0 (Binkowski et al., 2018,
    arXiv 1801.01401).
    """
    size = min(KERNEL_SUBSET_SIZE, len(synthetic), len(real))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        torch.default_generator.manual_seed(0)  # torchmetrics draws its subsets from the global generator
        metric = _import_torchmetrics().kid.KernelInceptionDistance(
            feature=_Given(synthetic.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size
        )
        metric.update(synthetic.double(), real=False)
        metric.update(real.double(), real=True)
        mean, _ = metric.compute()
    return float(mean)


def _import_torchmetrics() -> Any:
    try:
        import torchmetrics.image
        import torchmetrics.image.fid
        import torchmetrics.image.kid
    except ImportError:
        raise ValueError(
            "distances to real images need the package torchmetrics: pip install 'dreamdistill[quality]'"
        ) from None
    return torchmetrics.image


def neighborhood_scores(synthetic: Tensor, real: Tensor, num_neighbors: int) -> dict[str, float]:
    """Precision, recall, density and coverage of synthetic features (M, D) beside real ones (N, D).

    B(x) is the ball around x up to its k-th neighbor in its own set, k = `num_neighbors`. precision: the share of
    synthetic images in the ball of any real one; recall: of real images in the ball of any synthetic one (Kynkaanniemi
    et al., 2019, arXiv 1904.06991). density: the number of real balls around a synthetic image, divided by k, mean;
    coverage: the share of real images with a synthetic one in their ball (Naeem et al., 2020, arXiv 2002.09797).
    """
    real_radii, synthetic_radii = (_radii(values, num_neighbors) for values in (real, synthetic))
    distances = _distances(real, synthetic)
    in_real_ball, in_synthetic_ball = distances <= real_radii[:, None], distances <= synthetic_radii
    return {
        "precision": in_real_ball.any(0).double().mean().item(),
        "recall": in_synthetic_ball.any(1).double().mean().item(),
        "density": in_real_ball.double().sum(0).mean().item() / num_neighbors,
        "coverage": in_real_ball.any(1).double().mean().item(),
    }


def _radii(values: Tensor, num_neighbors: int) -> Tensor:
    """The distance of each of (N, D) from its k-th neighbor, (N,); an image is not its own neighbor."""
    return torch.cat([rows.kthvalue(num_neighbors + 1, dim=1).values for rows in _row_blocks(values, values)])


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (N, M) of (N, D) and (M, D)."""
    return torch.cat(list(_row_blocks(first, second)))


def _row_blocks(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    # By matrix products, which in float32 would lose the small distances of near duplicates.
    first, second = first.double(), second.double()
    for i in range(0, len(first), DISTANCE_ROWS):
        yield torch.cdist(first[i : i + DISTANCE_ROWS], second, compute_mode="use_mm_for_euclid_dist")
