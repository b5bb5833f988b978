"""Statistics of the inputs of BatchNorm layers, and hooks that are removed."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.synthesis.statistics import batch_norm_layers, capture_statistics, measure, pool_statistics


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 2, 7)])
def test_statistics_match_numpy(device, shape):
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3).to(device)
    layer.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.running_var.copy_(torch.tensor([4.0, 5.0, 6.0]))
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    statistics = measure(layer, features.to(device))
    rows = np.moveaxis(features.numpy(), 1, 0).reshape(3, -1)
    np.testing.assert_allclose(statistics.mean.cpu(), rows.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance.cpu(), rows.var(1, ddof=1), rtol=1e-5)
    assert statistics.running_mean.tolist() == [1, 2, 3]
    assert statistics.running_variance.tolist() == [4, 5, 6]


def test_variance_is_unbiased_like_that_of_batch_norm(device):
    layer = nn.BatchNorm2d(2, momentum=1.0).to(device)
    features = torch.randn(2, 2, 1, 2, generator=torch.Generator().manual_seed(0)).to(device)
    layer.train()(features)
    statistics = measure(layer, features)
    torch.testing.assert_close(statistics.variance, layer.running_var)
    torch.testing.assert_close(statistics.mean, layer.running_mean)


@pytest.mark.parametrize("distance", [0.0, 30.0])
def test_value_and_gradient_match_var_mean(device, distance):
    layer = nn.BatchNorm2d(3).to(device)
    features = (torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0)) + distance).to(device)
    weights = torch.tensor([1.0, -2.0, 0.5], device=device)
    inputs, reference = features.clone().requires_grad_(), features.clone().requires_grad_()
    statistics = measure(layer, inputs)
    variance, mean = torch.var_mean(reference, dim=[0, 2, 3])
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.variance, variance, rtol=1e-3, atol=0)
    (statistics.mean @ weights + statistics.variance @ weights.square()).backward()
    (mean @ weights + variance @ weights.square()).backward()
    torch.testing.assert_close(inputs.grad, reference.grad, rtol=1e-3, atol=1e-6)


def test_variance_of_equal_features_is_not_negative(device):
    values = torch.linspace(900, 1000, 500, device=device).view(1, 500, 1, 1)
    statistics = measure(nn.BatchNorm2d(500).to(device), values.expand(3, 500, 7, 7))
    assert (statistics.variance >= 0).all()


def test_single_value_has_zero_variance_and_a_finite_gradient(device):
    features = torch.tensor([[2.0, -1.0]], device=device, requires_grad=True)
    statistics = measure(nn.BatchNorm1d(2).to(device), features)
    assert statistics.mean.tolist() == [2, -1]
    assert statistics.variance.tolist() == [0, 0]
    (statistics.mean.sum() + statistics.variance.sum()).backward()
    assert features.grad.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_statistics_are_at_least_float32(device, dtype, expected):
    features = (256 + torch.arange(8.0).view(8, 1)).to(device, dtype)
    statistics = measure(nn.BatchNorm1d(1).to(device), features)
    assert statistics.mean.dtype == statistics.variance.dtype == expected
    assert statistics.mean.item() == pytest.approx(features.double().mean().item(), rel=1e-6)


def test_capture_measures_the_input_of_each_layer(device, make_classifier):
    network = make_classifier().freeze().network
    x = torch.randn(5, 3, 8, 6, generator=torch.Generator().manual_seed(0)).to(device)
    with capture_statistics(network) as captured:
        network(x)
    first = network.conv1(x)
    second = network.conv2(torch.relu(network.bn1(first)))
    for statistics, features, layer in zip(captured, (first, second), (network.bn1, network.bn2), strict=True):
        torch.testing.assert_close(statistics.mean, features.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(statistics.variance, features.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
        assert torch.equal(statistics.running_mean, layer.running_mean)


class ReorderedLayers(nn.Module):
    """Calls its layers in another order than that of their names, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first_named, self.last_named = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_named(self.first_named(self.last_named(x) + 5) + 7)


def test_every_call_is_measured_in_call_order():
    network = ReorderedLayers().eval()
    with capture_statistics(network) as captured:
        network(torch.zeros(2, 1))
    assert [round(statistics.mean.item()) for statistics in captured] == [0, 5, 12]


def test_gradients_flow_to_the_input(make_classifier, device):
    network = make_classifier().freeze().network
    x = torch.rand(4, 3, 8, 8).to(device).requires_grad_()
    with capture_statistics(network) as captured:
        network(x)
    sum(statistics.variance.sum() for statistics in captured).backward()
    assert x.grad.abs().sum() > 0


def test_hooks_are_removed_after_the_block(make_classifier, device):
    network = make_classifier().freeze().network
    with capture_statistics(network) as captured:
        network(torch.rand(2, 3, 8, 8).to(device))
        assert len(captured) == 2
    network(torch.rand(2, 3, 8, 8).to(device))
    assert len(captured) == 2


def test_hooks_are_removed_after_an_exception(make_classifier, device):
    network = make_classifier().freeze().network
    with pytest.raises(RuntimeError), capture_statistics(network) as captured:
        network(torch.rand(2, 7, 8, 8).to(device))  # seven channels
    network(torch.rand(2, 3, 8, 8).to(device))
    assert captured == []


def test_second_capture_does_not_double_the_hooks(make_classifier, device):
    network = make_classifier().freeze().network
    for _ in range(3):
        with capture_statistics(network) as captured:
            network(torch.rand(2, 3, 8, 8).to(device))
        assert len(captured) == len(batch_norm_layers(network)) == 2


def test_capture_does_not_change_the_network(make_classifier, device):
    network = make_classifier().freeze().network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x = torch.rand(4, 3, 8, 8).to(device)
    plain = network(x)
    with capture_statistics(network):
        captured_logits = network(x)
    assert torch.equal(plain, captured_logits)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_pooled_statistics_are_those_of_one_pass(device):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval().to(device)
    images = (5 + torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))).to(device)
    with torch.no_grad(), pool_statistics(network) as pooled:
        for batch in (images[:4], images[4:5], images[5:]):
            network(batch)
    with torch.no_grad(), capture_statistics(network) as captured:
        network(images)
    for several, one in zip(pooled.layers(), captured, strict=True):
        torch.testing.assert_close(several.mean, one.mean.double().cpu(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(several.variance, one.variance.double().cpu(), rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in network)
