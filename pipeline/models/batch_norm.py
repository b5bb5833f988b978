"""BatchNorm layers of a network whose weights no longer change."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Layers of other classes may do more than normalise, so they stay what they are.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def along_channels(values: Tensor, features: Tensor) -> Tensor:
    """Values (C,) in the shape that meets the channels of features (N, C, ...)."""
    return values.view(1, -1, *[1] * (features.dim() - 2))


class FrozenBatchNorm(_BatchNorm):
    """A layer that, compiled and in evaluation mode, multiplies by a factor that is computed once for each channel.

    Compilers fuse the normalisation with what surrounds it, so that they would take the root and the quotient again
    for every value. Uncompiled it is an ordinary layer. Its state dict is that of the layer that it was.
    """

    factor: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, ...), normalised, in their own type."""
        if self.training or not torch.compiler.is_compiling():
            return super().forward(x)
        assert self.running_mean is not None
        normalised = (x - along_channels(self.running_mean, x)) * along_channels(self.factor, x)
        if self.bias is not None:
            normalised = normalised + along_channels(self.bias, x)
        return normalised.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Whatever the layer that it was accepted."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.factor.copy_(_factor(self))


@torch.no_grad()
def _factor(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    return inverse if layer.weight is None else inverse * layer.weight


def freeze_batch_norms(network: nn.Module) -> None:
    """Turn the plain BatchNorm layers with running statistics into frozen ones, in place."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and type(layer) in PLAIN and layer.running_var is not None:
            layer.__class__ = FrozenBatchNorm
            layer.register_buffer("factor", _factor(layer), persistent=False)
