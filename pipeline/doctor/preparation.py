"""How pixels are prepared for a network, and what its first BatchNorm layer tells of how they were in its training.

That layer has the mean and variance of its input over the training images. If images of the same kind reach it with
another mean or variance, they are prepared in another way.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.config import Normalization, identity_normalization
from pipeline.synthesis.statistics import LayerStatistics, batch_norm_layers, measure
from pipeline.synthesis.terms import DEAD_VARIANCE, layer_divergence

# The usual (mean, std) of pixels in [0, 1], by a name for messages.
COMMON: dict[str, Normalization] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's mean and a mean of std over images": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's mean and std": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "pixels in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels in [0, 1]": identity_normalization(3),
    "pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "pixels in 0..255 minus ImageNet's mean": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
    "MNIST's mean and std": ((0.1307,), (0.3081,)),
    "gray pixels in [-1, 1]": ((0.5,), (0.5,)),
    "gray pixels in [0, 1]": identity_normalization(1),
    "gray pixels in 0..255": ((0.0,), (1 / 255,)),
}
# The names of the normalization of the config, and of fitted numbers.
GIVEN, BEST_FIT = "the given mean and std", "the best fit"
# The most times the lowest divergence that a preparation may have to be named in place of the lowest.
USUAL_FACTOR = 2.0
# Passes of the fit: each starts from the normalization of the one before, which is exact if the layer is linear.
FIT_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A normalization of pixels in [0, 1], with a name; `is_swapped`: red and blue are exchanged after it."""

    name: str
    normalization: Normalization
    is_swapped: bool = False

    def apply(self, pixels: Tensor) -> Tensor:
        """The input of the network, (N, C, H, W), for pixels in [0, 1]."""
        mean, std = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in self.normalization)
        inputs = (pixels - mean) / std
        return inputs.flip(1) if self.is_swapped else inputs


class _ReachedLayer(Exception):
    """Ends a forward pass at the first BatchNorm layer, with its statistics."""

    def __init__(self, statistics: LayerStatistics) -> None:
        self.statistics = statistics


@torch.no_grad()
def first_statistics(network: nn.Module, inputs: Tensor) -> LayerStatistics:
    """The statistics of the first BatchNorm layer that inputs (N, C, H, W) reach; nothing after it is computed.

    Raises ValueError for a network without BatchNorm.
    """

    def stop(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _ReachedLayer(measure(layer, arguments[0]))

    handles = [layer.register_forward_pre_hook(stop) for layer in batch_norm_layers(network)]
    try:
        network(inputs)
    except _ReachedLayer as reached:
        return reached.statistics
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError(f"{type(network).__name__} does not use its BatchNorm layers")


def divergences(network: nn.Module, pixels: Tensor, given: Preparation) -> tuple[float, dict[Preparation, float]]:
    """The divergence of the first BatchNorm layer, in nats, with the given preparation, and with each alternative.

    See `terms.feature_divergence`. The given one is infinite if it is not finite; such alternatives are left out.
    """

    def divergence(preparation: Preparation) -> float:
        value = layer_divergence(first_statistics(network, preparation.apply(pixels))).item()
        return value if math.isfinite(value) else math.inf

    others = {p: divergence(p) for p in _alternatives(network, pixels, given.normalization)}
    return divergence(given), {p: value for p, value in others.items() if value < math.inf}


def nearest(divergences: Mapping[Preparation, float]) -> Preparation:
    """The preparation with the lowest divergence, or one that is nearly as low and better to name.

    That is the given normalization with colors exchanged, before a usual normalization, before fitted numbers.
    """
    limit = USUAL_FACTOR * min(divergences.values())
    near = [p for p in divergences if divergences[p] <= limit]
    return min(near, key=lambda p: (p.name != GIVEN, p.name == BEST_FIT, divergences[p]))


def fit_normalization(network: nn.Module, pixels: Tensor) -> Normalization:
    """The (mean, std) with which these pixels in [0, 1] best match the first BatchNorm layer, whatever was given.

    If the layers before it are linear, one factor for all inputs multiplies its variances by the square of the factor,
    and a shift of a color moves its means along the response to a constant image of that color. The factor is the
    median over its channels, the shifts are a least-squares solution in units of their running deviations. `std` has
    the same value for all colors, which the statistics do not tell apart.
    """
    num_channels, device = pixels.shape[1], pixels.device
    mean, std = torch.zeros(num_channels), 1.0
    black = torch.zeros(1, *pixels.shape[1:], device=device)
    constants = [black + torch.eye(num_channels, device=device)[c].view(1, -1, 1, 1) for c in range(num_channels)]
    origin = first_statistics(network, black).mean
    responses = torch.stack([first_statistics(network, image).mean - origin for image in constants], dim=1)
    for _ in range(FIT_PASSES):
        statistics = first_statistics(network, (pixels - mean.to(device).view(1, -1, 1, 1)) / std)
        running = statistics.running_variance
        alive = (running >= DEAD_VARIANCE) & (statistics.variance > 0)
        factor = (running / statistics.variance)[alive].median().sqrt()
        missing = statistics.running_mean - origin - factor * (statistics.mean - origin)
        scale = running[alive].rsqrt()
        left, right = responses[alive] * scale[:, None], missing[alive] * scale
        shift = torch.linalg.lstsq(left.cpu(), right.cpu()[:, None]).solution[:, 0]
        mean, std = mean - std * shift / factor.cpu(), std / factor.item()
    return tuple(mean.tolist()), (std,) * num_channels


def _alternatives(network: nn.Module, pixels: Tensor, given: Normalization) -> Iterator[Preparation]:
    """Other preparations than the given one: usual ones, common slips, and the best fit; also with colors exchanged."""
    mean, std = given
    plain = {name: values for name, values in COMMON.items() if len(values[0]) == len(mean)}
    plain["the given mean and std, divided by 255"] = tuple(x / 255 for x in mean), tuple(x / 255 for x in std)
    if len(mean) == 1:
        orders = [False]
    else:
        orders = [False, True]
        plain["the given mean and std reversed"] = mean[::-1], std[::-1]
        yield Preparation(name=GIVEN, normalization=given, is_swapped=True)
    for is_swapped in orders:
        for name, normalization in plain.items():
            if normalization != given:
                yield Preparation(name=name, normalization=normalization, is_swapped=is_swapped)
        fitted_mean, fitted_std = fit_normalization(network, pixels.flip(1) if is_swapped else pixels)
        in_order = fitted_mean[::-1] if is_swapped else fitted_mean
        yield Preparation(name=BEST_FIT, normalization=(in_order, fitted_std), is_swapped=is_swapped)
