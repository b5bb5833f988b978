"""The statistics of the first BatchNorm layer give back the normalization of a training."""

import pytest
import torch
from torch import nn

from pipeline.doctor.preparation import Preparation, divergences, first_statistics, fit_normalization, nearest

MEAN, STD = (0.3, 0.5, 0.6), (0.25, 0.25, 0.25)
TRUE = Preparation(name="", normalization=(MEAN, STD))


@pytest.fixture
def pixels():
    """Images whose colors have different means."""
    noise = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0.5, 0.8, 1.0]).view(1, 3, 1, 1)


@pytest.fixture
def network(pixels):
    """A network whose statistics come from these images with the true normalization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=1.0), nn.ReLU())
    network(TRUE.apply(pixels))
    return network.eval()


def test_fit_gives_back_the_normalization(network, pixels):
    mean, std = fit_normalization(network, pixels)
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, rel=0.01)


def test_divergence_is_zero_with_the_normalization_of_training(network, pixels):
    own, others = divergences(network, pixels, TRUE)
    assert own == pytest.approx(0, abs=1e-4)
    assert others[nearest(others)] < 1e-3


@pytest.mark.parametrize("factor", [1 / 255, 0.5, 2, 255])
def test_wrong_factor_differs_and_the_fit_is_found(network, pixels, factor):
    given = Preparation(name="", normalization=(MEAN, tuple(factor * value for value in STD)))
    own, others = divergences(network, pixels, given)
    assert own > 0.2
    best = nearest(others)
    assert best.normalization[1] == pytest.approx(STD, rel=0.01)
    assert not best.is_swapped


def test_a_given_preparation_that_is_not_finite_is_infinitely_far(network, pixels):
    own, others = divergences(network, pixels, Preparation(name="", normalization=(MEAN, (0.0, 0.25, 0.25))))
    assert own == float("inf")
    assert others[nearest(others)] < 1e-3


def test_statistics_that_are_not_finite_match_nothing(network, pixels):
    network[1].running_var[0] = float("nan")
    assert divergences(network, pixels, TRUE) == (float("inf"), {})


def test_exchanged_colors_are_found(network, pixels):
    network[0].weight.data = network[0].weight.data.flip(1)
    own, others = divergences(network, pixels, TRUE)
    assert own > 0.01
    swapped = Preparation(name="the given mean and std", normalization=(MEAN, STD), is_swapped=True)
    assert nearest(others) == swapped
    assert others[swapped] == pytest.approx(0, abs=1e-4)
    (fit,) = (p for p in others if p.name == "the best fit" and p.is_swapped)
    assert fit.normalization[0] == pytest.approx(MEAN, abs=0.01)


def test_usual_preparation_is_named_if_it_is_nearly_as_near():
    usual = Preparation(name="usual", normalization=(MEAN, STD))
    fitted = Preparation(name="the best fit", normalization=(MEAN, STD))
    assert nearest({fitted: 0.01, usual: 0.019}) == usual
    assert nearest({fitted: 0.01, usual: 0.03}) == fitted


def test_pass_ends_at_the_first_layer_and_leaves_no_hook(network, pixels):
    calls = []
    network[2].register_forward_hook(lambda *arguments: calls.append(arguments))
    statistics = first_statistics(network, TRUE.apply(pixels))
    assert not calls
    assert not network[1]._forward_pre_hooks
    torch.testing.assert_close(statistics.mean, statistics.running_mean, rtol=1e-4, atol=1e-5)


def test_network_that_does_not_use_its_layer_raises(pixels):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="Unused does not use its BatchNorm layers"):
        first_statistics(Unused(), pixels)


def test_gray_images_have_no_order_of_colors(pixels):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    _, others = divergences(network, pixels[:, :1], Preparation(name="", normalization=((0.3,), (0.4,))))
    assert not any(preparation.is_swapped for preparation in others)
