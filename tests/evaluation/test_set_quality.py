"""Scores of sets of features with known answers."""

import math

import pytest
import torch

from pipeline.evaluation.features import Features
from pipeline.evaluation.set_quality import (
    QualityConfig,
    compare_sets,
    frechet_distance,
    kernel_distance,
    neighborhood_scores,
    own_scores,
    smallest_class,
    vendi_score,
)
from pipeline.models.config import ModelConfig
from pipeline.runtime.config import ConfigError


def normal(count: int, *, seed: int = 0, mean: float = 0.0, std: float = 1.0, num_features: int = 4) -> torch.Tensor:
    return mean + std * torch.randn(count, num_features, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_is_that_of_two_gaussians():
    first, second = normal(20_000, mean=1.0, std=1.0), normal(20_000, seed=1, mean=3.0, std=2.0)
    # Per feature: (difference of means)^2 + (difference of standard deviations)^2.
    assert frechet_distance(first, second) == pytest.approx(4 * (2.0**2 + 1.0**2), rel=0.02)


def test_kernel_distance_is_the_difference_of_moments():
    first, second = torch.zeros(50, 1), torch.full((50, 1), 2.0)
    # The kernel (x y + 1)^3 has the means 1, 1 and 125.
    assert kernel_distance(first, second) == pytest.approx(1 + 125 - 2 * 1)


def test_a_set_beside_itself_is_perfect():
    values = normal(300)
    scores = compare_sets(values, values, 5)
    assert scores["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert scores["kernel_distance"] == pytest.approx(0, abs=0.1)  # unbiased, so that it can be below 0
    assert [scores[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_another_sample_of_the_same_distribution_is_nearly_perfect():
    scores = compare_sets(normal(1000), normal(1000, seed=1), 5)
    assert scores["density"] == pytest.approx(1, abs=0.1)  # its expected value, Naeem et al., 2020
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert min(scores["precision"], scores["recall"]) > 0.9


def test_collapsed_set_has_precision_but_neither_recall_nor_coverage():
    collapsed = 0.01 * normal(300, seed=1)
    scores = neighborhood_scores(collapsed, normal(300), 5)
    assert scores["precision"] > 0.9
    assert scores["recall"] < 0.05
    assert scores["coverage"] < 0.5


def test_distant_set_has_nothing():
    scores = neighborhood_scores(normal(100, mean=100.0), normal(100, seed=1), 5)
    assert scores == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_neighborhoods_by_hand():
    real, synthetic = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [30.0], [31.0]])
    # k = 1: real balls [-1, 1], [0, 2], [1, 19]; synthetic balls have the radii 29.5, 1, 1.
    scores = neighborhood_scores(synthetic, real, 1)
    assert scores == pytest.approx({"precision": 1 / 3, "recall": 1, "density": 2 / 3, "coverage": 2 / 3})


def test_random_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    compare_sets(normal(30), normal(30, seed=1), 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num_features", "num_different"), [(3, 1), (8, 8), (8, 2)])
def test_vendi_score_counts_different_images(num_features, num_different):
    values = torch.eye(num_features)[[i % num_different for i in range(16)]]
    assert vendi_score(3 * values) == pytest.approx(num_different)


def test_own_scores_by_hand():
    values = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 2.0]])
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    features = Features(values=values, logits=logits, labels=torch.tensor([0, 0, 1, 1]))
    scores = own_scores(features, smallest_class(features))
    probability = math.e / (1 + math.e)
    assert scores["top1"] == 0.75
    assert scores["probability"] == pytest.approx((3 * probability + 1 - probability) / 4)
    assert scores["class_distance"] == pytest.approx(2 / ((3 + math.sqrt(13)) / 2))
    assert scores["vendi_images"] == 2


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 1, 2, 3], {"class_distance", "vendi", "vendi_images"}), ([0] * 4, {"class_distance"})]
)
def test_scores_that_compare_two_images_are_left_out_without_two(labels, missing):
    features = Features(values=normal(4), logits=normal(4), labels=torch.tensor(labels))
    names = {"top1", "probability", "class_distance", "vendi", "vendi_images"}
    assert own_scores(features, smallest_class(features)).keys() == names - missing


def test_too_few_images_raise():
    with pytest.raises(ValueError, match=r"num_neighbors: 5 .* 5 synthetic and 9 real"):
        compare_sets(normal(5), normal(9), 5)


def test_bad_settings_raise():
    with pytest.raises(ConfigError, match="num_neighbors: 0"):
        QualityConfig(num_neighbors=0)
    with pytest.raises(ConfigError, match=r"network\.weights: missing"):
        QualityConfig(network=ModelConfig(source="cifar10:resnet8"))


def test_missing_torchmetrics_raises(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image", None)
    with pytest.raises(ValueError, match=r"pip install 'dreamdistill\[quality\]'"):
        frechet_distance(normal(9), normal(9))
