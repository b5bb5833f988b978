"""Statistics of the input of each BatchNorm layer, captured during a forward pass by hooks of a `with` block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.models.batch_norm import along_channels


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """One BatchNorm layer: the batch's mean and variance of its input, and the running ones; each of shape (C,)."""

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network has a BatchNorm layer with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in network.modules())


def batch_norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers with running statistics; raises ValueError when there are none."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ValueError(
            f"the teacher ({type(network).__name__}) has no BatchNorm layer with running statistics, which inversion "
            "matches; choose a teacher with BatchNorm"
        )
    return layers


@contextmanager
def capture_statistics(network: nn.Module) -> Iterator[list[LayerStatistics]]:
    """Yield a list that each forward pass of `network` extends, one entry for each BatchNorm call, in call order.

    The caller clears the list before a pass. The hooks are removed when the block ends, exceptions included.
    """
    captured: list[LayerStatistics] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(measure(layer, inputs[0]))

    handles = [layer.register_forward_pre_hook(record) for layer in batch_norm_layers(network)]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


class PooledStatistics:
    """The statistics of every BatchNorm layer over any number of forward passes; made by `pool_statistics`."""

    def __init__(self, layers: Sequence[_BatchNorm]) -> None:
        self._counts: dict[nn.Module, int] = {}
        # Sums of the deviations from the running mean, and of their squares, (2, C): their difference does not cancel.
        self._sums = {layer: torch.zeros(2, layer.num_features, dtype=torch.float64) for layer in layers}

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the features (N, C, ...) of one pass; a hook of the layer."""
        assert isinstance(layer, _BatchNorm) and layer.running_mean is not None
        features = inputs[0].detach().float()
        deviation = (features - along_channels(layer.running_mean, features)).transpose(0, 1).flatten(1)
        sums = [x.sum(1, dtype=torch.float64) for x in (deviation, deviation.square())]
        self._counts[layer] = self._counts.get(layer, 0) + deviation.shape[1]
        self._sums[layer] += torch.stack(sums).cpu()

    def layers(self) -> list[LayerStatistics]:
        """The statistics, with the unbiased variance, of the layers that were used, in float64 on the CPU."""
        return [self._statistics(layer) for layer in self._sums if layer in self._counts]

    def _statistics(self, layer: _BatchNorm) -> LayerStatistics:
        assert layer.running_mean is not None and layer.running_var is not None
        count, running_mean = self._counts[layer], layer.running_mean.cpu().double()
        mean, mean_square = self._sums[layer] / count
        return LayerStatistics(
            mean=running_mean + mean,
            variance=(mean_square - mean.square()).clamp_min(0) * (count / max(1, count - 1)),
            running_mean=running_mean,
            running_variance=layer.running_var.cpu().double(),
        )


@contextmanager
def pool_statistics(network: nn.Module) -> Iterator[PooledStatistics]:
    """Pool the statistics of all forward passes of `network` within the block, at whose end the hooks are removed."""
    layers = batch_norm_layers(network)
    pooled = PooledStatistics(layers)
    handles = [layer.register_forward_pre_hook(pooled.add) for layer in layers]
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()


def measure(layer: nn.Module, features: Tensor) -> LayerStatistics:
    """Statistics over all but the channel dimension of features (N, C, ...), in float32 or float64.

    The variance is the unbiased one, because BatchNorm's running variance averages unbiased estimates. The biased one
    differs by n / (n - 1), which shows in small batches of small maps. A single value has variance 0.
    """
    assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    wide = features if features.dtype == torch.float64 else features.float()
    if wide.dim() == 2:
        wide = wide[:, :, None]
    count = wide.numel() // wide.shape[1]
    # The moments about the running mean take one pass over the features, and none in the backward pass, in which `var`
    # would compute the mean again. They are small, so their difference does not cancel.
    deviation = wide - along_channels(layer.running_mean, wide)
    # Compiled code repeats the arithmetic of a channel for each of its values: a factor costs less than a division, and
    # `abs` less than the mask of `clamp_min`. Sums image by image read the values in the order of memory.
    mean_deviation, mean_square = (
        x.sum(tuple(range(2, x.dim()))).sum(0) * (1 / count) for x in (deviation, deviation.square())
    )
    variance = (mean_square - mean_deviation.square()).abs() * (count / max(1, count - 1))
    return LayerStatistics(
        mean=layer.running_mean + mean_deviation,
        variance=variance,
        running_mean=layer.running_mean,
        running_variance=layer.running_var,
    )
