"""The loss terms of inversion: each takes a `View` and returns a scalar; weights are configuration.

Formulas: DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795), with the norms of the published code taken for each
image and averaged, so that a weight does not depend on the batch size: at batch B a whole-batch norm is about sqrt(B)
times the mean of the per-image ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.runtime.config import ConfigError
from pipeline.synthesis.statistics import LayerStatistics

# Channels that a trained network never uses have a running variance near zero; dividing by it would let them rule.
DEAD_VARIANCE = 1e-5


DIVERGENCE_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class View:
    """One optimisation step as the terms see it.

    `images` (N, C, H, W) in the space of the canvas, `logits` (N, K), `labels` (N,), the BatchNorm
    `statistics` in call order, the logits (N, K) of each further classifier of the `ensemble`, and the rival's logits
    (N, K) where there is a rival.
    """

    images: Tensor
    logits: Tensor
    labels: Tensor
    statistics: list[LayerStatistics]
    ensemble_logits: Sequence[Tensor] = ()
    rival_logits: Tensor | None = None


Term = Callable[[View], Tensor]


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """The weight of each term (0 leaves it out), and the constants of two of them."""

    classification: float = 1.0
    feature_norm: float = 0.0
    feature_divergence: float = 0.0
    tv_l2: float = 0.0
    tv_l1: float = 0.0
    image_l2: float = 0.0
    competition: float = 0.0
    first_bn_multiplier: float = 1.0
    competition_temperature: float = 3.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: {value} must be finite and at least 0")
        if not build_terms(self, has_rival=False):
            raise ConfigError("classification: no term but competition has a weight, and round 0 has no rival")
        if self.competition_temperature == 0:
            raise ConfigError("competition_temperature: 0 must be positive")


def build_terms(config: TermConfig, *, has_rival: bool) -> dict[str, tuple[float, Term]]:
    """The (weight, term) of every term in use, under its config name; competition needs a rival."""
    terms: dict[str, tuple[float, Term]] = {
        "classification": (config.classification, classification),
        "feature_norm": (config.feature_norm, lambda view: feature_norm(view, config.first_bn_multiplier)),
        "feature_divergence": (config.feature_divergence, feature_divergence),
        "tv_l2": (config.tv_l2, tv_l2),
        "tv_l1": (config.tv_l1, tv_l1),
        "image_l2": (config.image_l2, image_l2),
        "competition": (
            config.competition if has_rival else 0.0,
            lambda view: competition(view, config.competition_temperature),
        ),
    }
    return {name: (weight, term) for name, (weight, term) in terms.items() if weight}


def weighted_sum(terms: Mapping[str, tuple[float, Term]], view: View) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total, and each term's weighted value, detached, under its config name."""
    parts = {name: weight * term(view) for name, (weight, term) in terms.items()}
    return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


def classification(view: View) -> Tensor:
    """Cross-entropy with the labels, mean over the teacher and the ensemble, then the batch, natural logarithm."""
    networks = (view.logits, *view.ensemble_logits)
    return torch.stack([F.cross_entropy(logits.float(), view.labels) for logits in networks]).mean()


def feature_norm(view: View, first_bn_multiplier: float = 1.0) -> Tensor:
    """The published feature term: sum over layers of ||mean - running mean||_2 + ||variance - running variance||_2.

    The first layer counts `first_bn_multiplier` times.
    """
    layers = [
        torch.linalg.vector_norm(s.mean - s.running_mean) + torch.linalg.vector_norm(s.variance - s.running_variance)
        for s in view.statistics
    ]
    return torch.stack([layers[0] * first_bn_multiplier, *layers[1:]]).sum()


def feature_divergence(view: View) -> Tensor:
    """The scale-free feature term: KL from the batch's Gaussian to the running one, mean over channels, then layers.

    For each channel (ln((s2 + e) / (v + e)) + (v + e + (mu - m)^2) / (s2 + e) - 1) / 2 with running mean m and
    variance s2, batch mean mu and variance v. Dead channels, with s2 below 1e-5, are left out.
    """
    return torch.stack([_layer_divergence(s) for s in view.statistics]).mean()


def _layer_divergence(s: LayerStatistics) -> Tensor:
    alive = (s.running_variance >= DEAD_VARIANCE).float()
    wanted, found = s.running_variance + DIVERGENCE_EPSILON, s.variance + DIVERGENCE_EPSILON
    distance = torch.log(wanted / found) + (found + (s.mean - s.running_mean).square()) / wanted - 1
    return (distance * alive).sum() / alive.sum().clamp_min(1) / 2


def _differences(images: Tensor) -> list[Tensor]:
    """Differences of (N, C, H, W) towards the right, down and both diagonals."""
    return [
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:, :] - images[:, :, :-1, :],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    ]


def _image_norms(images: Tensor) -> Tensor:
    """L2 norm of each image of (N, C, H, W), shape (N,); its gradient at zero is zero."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))  # flattened first, it compiles to slower code
    return norms


def tv_l2(view: View) -> Tensor:
    """Total variation: L2 norms of the differences in four directions, summed, for each image, mean over images."""
    return torch.stack([_image_norms(d) for d in _differences(view.images)]).sum(0).mean()


def tv_l1(view: View) -> Tensor:
    """Total variation: mean absolute difference, summed over four directions."""
    return torch.stack([d.abs().mean() for d in _differences(view.images)]).sum()


def image_l2(view: View) -> Tensor:
    """L2 norm of each image, mean over images."""
    return _image_norms(view.images).mean()


def competition(view: View, temperature: float = 3.0) -> Tensor:
    """1 - JS(teacher, rival) at a temperature: low where the two disagree (Adaptive DeepInversion, equation 8).

    JS = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 and natural logarithms, so it lies in [0, ln 2]. It is
    computed from log-softmax without clamping, so its gradient never vanishes by clipping.
    """
    assert view.rival_logits is not None
    p = F.log_softmax(view.logits.float() / temperature, dim=1)
    q = F.log_softmax(view.rival_logits.float() / temperature, dim=1)
    m = torch.logaddexp(p, q) - math.log(2)
    divergence = F.kl_div(m, p, log_target=True, reduction="none") + F.kl_div(m, q, log_target=True, reduction="none")
    return 1 - divergence.sum(1).mean() / 2
