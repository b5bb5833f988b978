"""The loss terms of inversion: functions of `StepOutputs` that return a scalar; their weights are configuration.

Formulas: DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795). The published code takes norms of a whole batch; here
they are taken per image and averaged, so that weights do not depend on the batch size. At batch B the norm of the batch
is about sqrt(B) times the mean of the norms of the images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.runtime.config import ConfigError
from pipeline.synthesis.statistics import LayerStatistics

# A channel that a trained network does not use has a running variance near zero; divided by it, it would dominate.
DEAD_VARIANCE = 1e-5
DIVERGENCE_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class StepOutputs:
    """One optimization step as the terms see it.

    `images` (N, C, H, W) is the random view of this step, in the space of the inputs (`inputs.to_pixels` gives pixels
    in [0, 1]). The other fields are the teacher's `logits` (N, C), the `labels` (N,), the `statistics` of its BatchNorm
    layers in call order, and the logits (N, C) of each classifier of the ensemble. If there is a student, they are also
    its logits (N, K) and the teacher's of the same K classes, `shared_logits`.
    """

    images: Tensor
    logits: Tensor
    labels: Tensor
    statistics: list[LayerStatistics]
    ensemble_logits: Sequence[Tensor] = ()
    shared_logits: Tensor | None = None
    student_logits: Tensor | None = None


Term = Callable[[StepOutputs], Tensor]


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """The weights of the loss terms, all at least 0 (0 leaves a term out), and the constants of some terms.

    Feature terms compare the mean mu and the variance v of a batch with the running mean and variance of each BatchNorm
    layer of the teacher. Priors of the image are computed for inputs x, where pixels = 0.45 + 0.225 x.

    Attributes:
        classification: Weight of the cross-entropy with the labels, mean over the teacher and the `ensemble`.
        feature_norm: Weight of the feature term of DeepInversion (arXiv 1912.08795): the L2 norms of the
            differences of mu and of v, summed over the layers.
        feature_divergence: Weight of the scale-free feature term: the KL divergence from the batch's Gaussian (mu, v)
            to the running one, mean over the channels, then over the layers.
        tv_l2: Weight of the total variation: for each image, the L2 norms of the differences of neighbors in four
            directions, summed; then the mean over the images.
        tv_l1: Weight of the mean absolute difference of neighbors, summed over four directions.
        image_l2: Weight of the L2 norm of each image, mean over the images.
        competition: Weight of 1 - JS(teacher, student), which favors images on which the two disagree (Adaptive
            DeepInversion, arXiv 1912.08795, equation 8). The student is that of the round before, so it needs
            `synthesis.rounds` of at least 2.
        first_bn_multiplier: Factor of the first BatchNorm layer in `feature_norm`.
        competition_temperature: Temperature of the softmax of both networks in `competition`, positive.
    """

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
        if not build_terms(self, has_student=False):
            raise ConfigError(
                "classification: no term but competition has a weight, and round 0 has no student to compete with"
            )
        if self.competition_temperature == 0:
            raise ConfigError("competition_temperature: 0 must be positive")


def build_terms(config: TermConfig, *, has_student: bool) -> dict[str, tuple[float, Term]]:
    """(weight, term) of every term with a weight, by its config name; competition needs a student."""
    terms: dict[str, tuple[float, Term]] = {
        "classification": (config.classification, classification),
        "feature_norm": (config.feature_norm, lambda outputs: feature_norm(outputs, config.first_bn_multiplier)),
        "feature_divergence": (config.feature_divergence, feature_divergence),
        "tv_l2": (config.tv_l2, tv_l2),
        "tv_l1": (config.tv_l1, tv_l1),
        "image_l2": (config.image_l2, image_l2),
        "competition": (
            config.competition if has_student else 0.0,
            lambda outputs: competition(outputs, config.competition_temperature),
        ),
    }
    return {name: (weight, term) for name, (weight, term) in terms.items() if weight}


def weighted_sum(terms: Mapping[str, tuple[float, Term]], outputs: StepOutputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total, and each term's weighted value, detached, under its config name."""
    parts = {name: weight * term(outputs) for name, (weight, term) in terms.items()}
    return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


def classification(outputs: StepOutputs) -> Tensor:
    """Cross-entropy with the labels, in nats, mean over the batch, the teacher and the ensemble."""
    networks = (outputs.logits, *outputs.ensemble_logits)
    return torch.stack([F.cross_entropy(logits.float(), outputs.labels) for logits in networks]).mean()


def feature_norm(outputs: StepOutputs, first_bn_multiplier: float = 1.0) -> Tensor:
    """The published feature term: sum over layers of ||mean - running mean||_2 + ||variance - running variance||_2.

    The first layer has the weight `first_bn_multiplier`.
    """
    layers = [
        torch.linalg.vector_norm(s.mean - s.running_mean) + torch.linalg.vector_norm(s.variance - s.running_variance)
        for s in outputs.statistics
    ]
    return torch.stack([layers[0] * first_bn_multiplier, *layers[1:]]).sum()


def feature_divergence(outputs: StepOutputs) -> Tensor:
    """The scale-free feature term: KL from the batch's Gaussian to the running one, mean over channels, then layers.

    It is (ln((s2 + e) / (v + e)) + (v + e + (mu - m)^2) / (s2 + e) - 1) / 2 for each channel, with running mean m and
    variance s2, batch mean mu and variance v, e = 1e-5. Dead channels, with s2 below 1e-5, do not count.
    """
    return torch.stack([layer_divergence(s) for s in outputs.statistics]).mean()


def layer_divergence(s: LayerStatistics) -> Tensor:
    """The divergence of one layer, mean over its channels; see `feature_divergence`."""
    alive = (s.running_variance >= DEAD_VARIANCE).float()
    running, batch = s.running_variance + DIVERGENCE_EPSILON, s.variance + DIVERGENCE_EPSILON
    distance = torch.log(running / batch) + (batch + (s.mean - s.running_mean).square()) / running - 1
    return (distance * alive).sum() / alive.sum().clamp_min(1) / 2


def _differences(images: Tensor) -> list[Tensor]:
    """Differences of neighboring pixels of (N, C, H, W): to the right, down, and along both diagonals."""
    return [
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:, :] - images[:, :, :-1, :],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    ]


def _image_norms(images: Tensor) -> Tensor:
    """L2 norm of each image of (N, C, H, W), shape (N,); its gradient at zero is zero."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))  # `flatten` first would compile to slower code
    return norms


def tv_l2(outputs: StepOutputs) -> Tensor:
    """Total variation: L2 norms of the differences in four directions, summed, for each image, mean over images."""
    return torch.stack([_image_norms(d) for d in _differences(outputs.images)]).sum(0).mean()


def tv_l1(outputs: StepOutputs) -> Tensor:
    """Total variation: mean absolute difference, summed over four directions."""
    return torch.stack([d.abs().mean() for d in _differences(outputs.images)]).sum()


def image_l2(outputs: StepOutputs) -> Tensor:
    """L2 norm of each image, mean over images."""
    return _image_norms(outputs.images).mean()


def competition(outputs: StepOutputs, temperature: float = 3.0) -> Tensor:
    """1 - JS(teacher, student) at a temperature: low if the two disagree (Adaptive DeepInversion, equation 8).

    JS = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats, so it lies in [0, ln 2]. It is computed from
    log-softmax without clamping, so that the gradient does not vanish.
    """
    assert outputs.student_logits is not None and outputs.shared_logits is not None
    p = F.log_softmax(outputs.shared_logits.float() / temperature, dim=1)
    q = F.log_softmax(outputs.student_logits.float() / temperature, dim=1)
    m = torch.logaddexp(p, q) - math.log(2)
    divergence = F.kl_div(m, p, log_target=True, reduction="none") + F.kl_div(m, q, log_target=True, reduction="none")
    return 1 - divergence.sum(1).mean() / 2
