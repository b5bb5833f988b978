"""BatchNorm layers of a network whose weights no longer change."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Layers of other classes may do more than normalize, so they stay as they are.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def along_channels(values: Tensor, features: Tensor) -> Tensor:
    """Values (C,) in the shape that broadcasts over the channels of features (N, C, ...)."""
    return values.view(1, -1, *[1] * (features.dim() - 2))


class FrozenBatchNorm(_BatchNorm):
    """`layer`, with a factor weight / sqrt(running_var + eps) for each channel that is computed once.

    It shares the tensors of `layer`, and its state dict has the same keys. It multiplies by the factor only when it is
    compiled and in evaluation mode: a compiler fuses the normalization with its neighbors and would repeat the root and
    the quotient for every value. Otherwise it is an ordinary layer.
    """

    factor: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.register_buffer("factor", _factor(layer), persistent=False)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, ...), normalized, in their own type."""
        if self.training or not torch.compiler.is_compiling():
            return super().forward(x)
        assert self.running_mean is not None
        normalized = (x - along_channels(self.running_mean, x)) * along_channels(self.factor, x)
        if self.bias is not None:
            normalized = normalized + along_channels(self.bias, x)
        return normalized.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, for layers of 1, 2 and 3 dimensions."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.factor.copy_(_factor(self))


@torch.no_grad()
def _factor(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    return inverse if layer.weight is None else inverse * layer.weight


def freeze_batch_norms(network: nn.Module) -> nn.Module:
    """`network` with its plain BatchNorm layers replaced by frozen ones, in place but for a network that is one layer.

    Layers without running statistics stay as they are, and so do layers with hooks, which a replacement would lose.
    """
    plain = [m for m in network.modules() if isinstance(m, _BatchNorm) and _is_plain(m)]
    frozen: dict[nn.Module, nn.Module] = {layer: FrozenBatchNorm(layer) for layer in plain}
    for module in network.modules():
        for name, child in module._modules.items():  # `named_children` would leave out a layer's second place
            if child in frozen:
                setattr(module, name, frozen[child])
        for value in vars(module).values():
            if isinstance(value, list):  # a plain list of layers, beside their registration as modules
                value[:] = [frozen.get(item, item) if isinstance(item, nn.Module) else item for item in value]
    return frozen.get(network, network)


def _is_plain(layer: _BatchNorm) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) in PLAIN and layer.running_var is not None and not any(hooks)
