"""Frozen BatchNorm layers normalize like ordinary ones, compiled too, and take other weights."""

import copy

import pytest
import torch
from torch import nn

from pipeline.models.batch_norm import FrozenBatchNorm, freeze_batch_norms


def make_layer(kind, **options):
    generator = torch.Generator().manual_seed(0)
    layer = kind(4, **options).eval()
    for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
        if tensor is not None:
            tensor.data.copy_(torch.rand(4, generator=generator) + 0.5)
    return layer


def frozen(layer):
    network = nn.Sequential(copy.deepcopy(layer))
    freeze_batch_norms(network)
    return network


def run_compiled(network, x):
    torch.compiler.reset()
    return torch.compile(network, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (5, 4)),
        (nn.BatchNorm1d, (5, 4, 3)),
        (nn.BatchNorm2d, (5, 4, 3, 2)),
        (nn.BatchNorm3d, (5, 4, 3, 2, 2)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_frozen_layer_gives_what_the_ordinary_one_gives(device, kind, shape, affine, dtype, tolerance):
    layer = make_layer(kind, affine=affine, eps=0.01).to(device)
    network = frozen(layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = run_compiled(network, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer(x), rtol=tolerance, atol=tolerance)
    assert torch.equal(network(x), layer(x)), "uncompiled it is an ordinary layer"


def test_other_weights_are_used_once_they_are_loaded(device):
    layer, other = (make_layer(nn.BatchNorm2d).to(device) for _ in range(2))
    other.running_var.mul_(4)
    other.weight.data.mul_(3)
    network, x = frozen(layer), torch.ones(1, 4, 1, 1, device=device)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    network[0].load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x))


def test_the_state_dict_and_the_hooks_stay():
    layer, seen = make_layer(nn.BatchNorm2d), []
    network = nn.Sequential(layer)
    layer.register_forward_pre_hook(lambda *arguments: seen.append(arguments))
    names = list(network.state_dict())
    freeze_batch_norms(network)
    freeze_batch_norms(network)
    assert isinstance(network[0], FrozenBatchNorm)
    assert list(network.state_dict()) == names
    network(torch.ones(1, 4, 1, 1))
    assert len(seen) == 1


def test_training_uses_the_statistics_of_the_batch():
    layer = make_layer(nn.BatchNorm2d)
    network, x = frozen(layer).train(), torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run_compiled(network, x), layer.train()(x))


def test_other_layers_are_left_alone():
    class WithActivation(nn.BatchNorm2d):
        pass

    others = nn.Sequential(WithActivation(4), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    kinds = [type(layer) for layer in others]
    freeze_batch_norms(others)
    assert [type(layer) for layer in others] == kinds
