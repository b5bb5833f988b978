"""Frozen BatchNorm layers normalize like plain ones, also compiled, and their weights can be loaded."""

import pytest
import torch
from torch import nn

from pipeline.models.batch_norm import FrozenBatchNorm, freeze_batch_norms
from pipeline.synthesis.statistics import batch_norm_layers


def make_layer(kind=nn.BatchNorm2d, **options):
    """A layer of four channels with random statistics and weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    layer = kind(4, **options).eval()
    for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
        if tensor is not None:
            tensor.data.copy_(torch.rand(4, generator=generator) + 0.5)
    return layer


def run_compiled(module, x):
    torch.compiler.reset()
    return torch.compile(module, backend="eager", fullgraph=True)(x)


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
def test_frozen_layer_normalizes_like_the_plain_one(device, kind, shape, affine, dtype, tolerance):
    layer = make_layer(kind, affine=affine, eps=0.01).to(device)
    frozen = FrozenBatchNorm(layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    compiled = run_compiled(frozen, x)
    assert compiled.dtype == dtype
    torch.testing.assert_close(compiled, layer(x), rtol=tolerance, atol=tolerance)
    assert torch.equal(frozen(x), layer(x)), "without compilation it is a plain layer"


def test_loaded_weights_are_used(device):
    layer, other = (make_layer().to(device) for _ in range(2))
    other.running_var.mul_(4)
    other.weight.data.mul_(3)
    frozen, x = FrozenBatchNorm(layer), torch.ones(1, 4, 1, 1, device=device)
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    frozen.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x))


def test_training_mode_uses_the_statistics_of_the_batch():
    layer, x = make_layer(), torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run_compiled(FrozenBatchNorm(layer).train(), x), layer.train()(x))


def test_freezing_keeps_the_state_dict_and_can_be_repeated():
    network = nn.Sequential(make_layer(), nn.Sequential(make_layer(affine=False)))
    tensors = dict(network.state_dict())
    for _ in range(2):
        assert freeze_batch_norms(network) is network
        assert [type(layer) for layer in (network[0], network[1][0])] == [FrozenBatchNorm] * 2
        torch.testing.assert_close(dict(network.state_dict()), tensors, rtol=0, atol=0)


def test_network_that_is_one_layer_is_replaced():
    layer = make_layer()
    frozen = freeze_batch_norms(layer)
    assert isinstance(frozen, FrozenBatchNorm)
    assert frozen.weight is layer.weight


def test_shared_layer_stays_shared():
    layer = make_layer()
    network = freeze_batch_norms(nn.ModuleDict({"first": layer, "second": nn.Sequential(layer)}))
    assert isinstance(network["first"], FrozenBatchNorm)
    assert network["second"][0] is network["first"]


def test_layer_with_hooks_is_kept_with_its_hooks():
    layer, calls = make_layer(), []
    layer.register_forward_pre_hook(lambda *arguments: calls.append(arguments))
    network = freeze_batch_norms(nn.Sequential(layer))
    assert network[0] is layer
    network(torch.ones(1, 4, 1, 1))
    assert len(calls) == 1


def test_other_layers_are_kept():
    class WithActivation(nn.BatchNorm2d):
        pass

    network = nn.Sequential(WithActivation(4), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    layers = list(network)
    assert list(freeze_batch_norms(network)) == layers


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))])
def test_network_without_running_statistics_raises(network):
    with pytest.raises(ValueError, match=rf"the teacher \({type(network).__name__}\) has no BatchNorm layer"):
        batch_norm_layers(network)


def test_layer_in_a_plain_list_is_replaced_there_too():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = make_layer(nn.BatchNorm2d)
            self.layers = [self.bn]

        def forward(self, x):
            return self.layers[0](x)

    network = Listed()
    freeze_batch_norms(network)
    assert isinstance(network.bn, FrozenBatchNorm)
    assert network.layers[0] is network.bn
