"""The loss terms: values compared with those by hand, and gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.runtime.config import ConfigError
from pipeline.synthesis.statistics import LayerStatistics, capture_statistics
from pipeline.synthesis.terms import (
    StepOutputs,
    TermConfig,
    build_terms,
    classification,
    competition,
    feature_divergence,
    feature_norm,
    image_l2,
    tv_l1,
    tv_l2,
    weighted_sum,
)


def layer(mean, variance, running_mean, running_variance, device="cpu") -> LayerStatistics:
    values = (mean, variance, running_mean, running_variance)
    tensors = [v if isinstance(v, Tensor) else torch.tensor(v, device=device) for v in values]
    names = ("mean", "variance", "running_mean", "running_variance")
    return LayerStatistics(**dict(zip(names, tensors, strict=True)))


def make_outputs(images=None, logits=None, labels=None, statistics=(), student_logits=None) -> StepOutputs:
    """Outputs of a step; a test gives only those that its term reads."""
    empty = torch.zeros(1, 1, 1, 1)
    return StepOutputs(
        images=empty if images is None else images,
        logits=torch.zeros(1, 2) if logits is None else logits,
        labels=torch.zeros(1, dtype=torch.long) if labels is None else labels,
        statistics=list(statistics),
        shared_logits=logits,
        student_logits=student_logits,
    )


def test_classification_is_the_cross_entropy(device):
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], device=device).log() + 3  # a shift changes nothing
    labels = torch.tensor([0, 1], device=device)
    value = classification(make_outputs(logits=logits, labels=labels)).item()
    assert value == pytest.approx((math.log(2) + math.log(10)) / 2, abs=1e-6)


def test_classification_averages_teacher_and_ensemble(device):
    labels = torch.tensor([0], device=device)
    teacher, second, third = (torch.tensor([[p, 1 - p]], device=device).log() for p in (0.5, 0.1, 0.25))
    outputs = replace(make_outputs(logits=teacher, labels=labels), ensemble_logits=[second, third])
    assert classification(outputs).item() == pytest.approx((math.log(2) + math.log(10) + math.log(4)) / 3, abs=1e-6)


TWO_LAYERS = (
    ([1.0, 2.0], [4.0, 9.0], [1.0, 0.0], [4.0, 5.0]),  # norms 2 and 4
    ([3.0], [1.0], [0.0], [5.0]),  # norms 3 and 4
)


@pytest.mark.parametrize(("multiplier", "expected"), [(1.0, 6 + 7), (10.0, 60 + 7), (0.0, 7)])
def test_feature_norm_by_hand_with_the_first_bn_multiplier(device, multiplier, expected):
    statistics = [layer(*values, device=device) for values in TWO_LAYERS]
    assert feature_norm(make_outputs(statistics=statistics), multiplier).item() == pytest.approx(expected)
    terms = build_terms(TermConfig(feature_norm=2.0, first_bn_multiplier=multiplier), has_student=False)
    weight, term = terms["feature_norm"]
    assert weight * term(make_outputs(statistics=statistics)).item() == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [
        (1.0, 4.0, 0.0),
        (3.0, 4.0, 0.5),  # one standard deviation off
        (1.0, 16.0, (3 - math.log(4)) / 2),
        (1.0, 1.0, (math.log(4) - 0.75) / 2),
    ],
)
def test_feature_divergence_of_one_channel(device, mean, variance, expected):
    one = layer([mean], [variance], [1.0], [4.0], device)
    assert feature_divergence(make_outputs(statistics=[one])).item() == pytest.approx(expected, abs=1e-5)


def test_feature_divergence_averages_channels_then_layers(device):
    one_off = layer([3.0, 1.0], [4.0, 4.0], [1.0, 1.0], [4.0, 4.0], device)  # divergences 1/2 and 0
    wide = layer([0.0], [16.0], [0.0], [4.0], device)
    expected = (0.25 + (3 - math.log(4)) / 2) / 2
    assert feature_divergence(make_outputs(statistics=[one_off, wide])).item() == pytest.approx(expected, abs=1e-5)


def test_feature_divergence_is_the_kl_of_two_gaussians():
    draws = np.random.default_rng(0)
    mean, running_mean = draws.normal(size=(2, 9))
    variance, running_variance = draws.uniform(0.5, 4, size=(2, 9))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(mean), torch.tensor(variance).sqrt()),
        torch.distributions.Normal(torch.tensor(running_mean), torch.tensor(running_variance).sqrt()),
    ).mean()
    statistics = layer(*(torch.tensor(v).float() for v in (mean, variance, running_mean, running_variance)))
    assert feature_divergence(make_outputs(statistics=[statistics])).item() == pytest.approx(expected.item(), rel=1e-3)


def test_dead_channels_have_no_value_and_no_gradient(device):
    mean = torch.tensor([3.0, 50.0], device=device, requires_grad=True)
    dead = layer(mean, [4.0, 7.0], [1.0, 0.0], [4.0, 9e-6], device)
    value = feature_divergence(make_outputs(statistics=[dead]))
    assert value.item() == pytest.approx(0.5, abs=1e-5)
    value.backward()
    assert mean.grad[0] != 0
    assert mean.grad[1] == 0


def test_layer_of_dead_channels_has_no_divergence(device):
    dead = layer([50.0], [7.0], [0.0], [0.0], device)
    assert feature_divergence(make_outputs(statistics=[dead])).item() == 0


# Differences: right 3, -4; down 4, -3; one diagonal 0, the other 1.
SQUARE = [[0.0, 3.0], [4.0, 0.0]]


def test_image_priors_by_hand(device):
    one = make_outputs(images=torch.tensor([[SQUARE]], device=device))
    assert tv_l2(one).item() == pytest.approx(5 + 5 + 0 + 1)
    assert tv_l1(one).item() == pytest.approx(3.5 + 3.5 + 0 + 1)
    assert image_l2(one).item() == pytest.approx(5)


def test_total_variation_has_four_directions():
    one_row = make_outputs(images=torch.tensor([[[[0.0, 2.0, 2.0]]]]))
    one_column = make_outputs(images=torch.tensor([[[[0.0], [2.0], [2.0]]]]))
    assert tv_l2(one_row).item() == tv_l2(one_column).item() == 2
    diagonal = make_outputs(images=torch.tensor([[[[7.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 7.0]]]]))
    right, down, main_diagonal, other_diagonal = 14.0, 14.0, 0.0, math.sqrt(2 * 49)
    assert tv_l2(diagonal).item() == pytest.approx(right + down + main_diagonal + other_diagonal)


@pytest.mark.parametrize("term", [tv_l2, tv_l1, image_l2])
def test_image_priors_do_not_depend_on_the_batch_size(device, term):
    image = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(device)
    single, many = (term(make_outputs(images=image.repeat(n, 1, 1, 1))).item() for n in (1, 16))
    assert many == pytest.approx(single, rel=1e-5)


def test_image_norms_are_averaged_over_the_batch():
    images = torch.cat([torch.tensor([[SQUARE]]), torch.zeros(1, 1, 2, 2)])
    assert tv_l2(make_outputs(images=images)).item() == pytest.approx(11 / 2)
    assert image_l2(make_outputs(images=images)).item() == pytest.approx(5 / 2)


def test_competition_by_hand_at_a_temperature(device):
    p, q = torch.tensor([[0.75, 0.25]], device=device), torch.tensor([[0.25, 0.75]], device=device)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for temperature in (1.0, 3.0, 10.0):
        outputs = make_outputs(logits=temperature * p.log() + 7, student_logits=temperature * q.log() - 2)
        assert competition(outputs, temperature).item() == pytest.approx(1 - divergence, abs=1e-6)


def test_competition_is_between_one_minus_ln2_and_one():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0, 100.0):
        logits, student_logits = scale * torch.randn(2, 64, 1000, generator=generator)
        assert (
            1 - math.log(2) - 1e-5
            <= competition(make_outputs(logits=logits, student_logits=student_logits)).item()
            <= 1 + 1e-5
        )
        assert competition(make_outputs(logits=logits, student_logits=logits)).item() == pytest.approx(1, abs=1e-6)
    opposite = 1000 * torch.eye(2)
    assert competition(make_outputs(logits=opposite, student_logits=opposite.flip(1))).item() == pytest.approx(
        1 - math.log(2)
    )


def test_competition_gradient_does_not_vanish_for_confident_logits(device):
    draws = torch.Generator().manual_seed(0)
    for margin in (15.0, 30.0, 60.0):
        logits, student_logits = (torch.randn(8, 1000, generator=draws).to(device) for _ in range(2))
        logits[:, 0] += margin
        student_logits[:, 0] += margin - 5
        logits.requires_grad_(), student_logits.requires_grad_()
        competition(make_outputs(logits=logits, student_logits=student_logits)).backward()
        for gradient in (logits.grad, student_logits.grad):
            assert torch.isfinite(gradient).all()
            assert (gradient != 0).float().mean() > 0.99


def gradients_of(term, images=None, logits=None, student_logits=None, statistics=()):
    leaves = [t for t in (images, logits) if t is not None]
    leaves += [t for s in statistics for t in (s.mean, s.variance)]
    for leaf in leaves:
        leaf.requires_grad_()
    term(make_outputs(images=images, logits=logits, student_logits=student_logits, statistics=statistics)).backward()
    return [leaf.grad for leaf in leaves]


def test_gradients_are_finite_at_zero_differences(device):
    flat = torch.zeros(2, 3, 4, 4, device=device)
    equal = layer([1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], device)
    constant = layer([1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [3.0, 4.0], device)
    logits = torch.zeros(2, 5, device=device)
    gradients = [
        *(g for term in (tv_l2, tv_l1, image_l2) for g in gradients_of(term, images=flat.clone())),
        *gradients_of(feature_norm, statistics=[equal]),
        *gradients_of(feature_divergence, statistics=[equal]),
        *gradients_of(feature_divergence, statistics=[constant]),
        *gradients_of(competition, logits=logits, student_logits=logits.clone()),
    ]
    assert len(gradients) == 3 + 3 * 2 + 1
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


NAMES = ("classification", "feature_norm", "feature_divergence", "tv_l2", "tv_l1", "image_l2", "competition")


@pytest.fixture
def compute_outputs(make_classifier, device):
    """Computes the outputs of a step from images, with a frozen teacher and a frozen student."""
    teacher, student = (make_classifier(seed).freeze() for seed in (0, 1))
    labels = torch.arange(8, device=device) % 4

    def compute(images: Tensor) -> StepOutputs:
        with capture_statistics(teacher.network) as statistics:
            logits = teacher.network(images)
        return StepOutputs(
            images=images,
            logits=logits,
            labels=labels,
            statistics=statistics,
            shared_logits=logits,
            student_logits=student.network(images),
        )

    return compute


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_of_descent_lower_every_term(device, compute_outputs, name):
    _, term = build_terms(TermConfig(**{name: 1.0}), has_student=True)[name]
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    values = []
    for _ in range(6):
        value = term(compute_outputs(images))
        (gradient,) = torch.autograd.grad(value, images)
        values.append(value.item())
        images = (images - 0.1 * gradient / gradient.norm()).detach().requires_grad_()
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_weighted_terms_add_up_to_the_total(device, compute_outputs):
    weights = dict(zip(NAMES, (1.0, 0.01, 5.0, 1e-3, 0.1, 0.2, 3.0), strict=True))
    outputs = compute_outputs(
        torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    )
    total, parts = weighted_sum(build_terms(TermConfig(**weights), has_student=True), outputs)
    assert tuple(parts) == NAMES
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())
    _, unit_parts = weighted_sum(build_terms(TermConfig(**dict.fromkeys(NAMES, 1.0)), has_student=True), outputs)
    for name, weight in weights.items():
        assert parts[name].item() == pytest.approx(weight * unit_parts[name].item(), rel=1e-5)


def test_terms_without_weight_or_student_are_left_out():
    config = TermConfig(classification=0.0, tv_l2=1.0, competition=1.0)
    assert tuple(build_terms(config, has_student=False)) == ("tv_l2",)
    assert tuple(build_terms(config, has_student=True)) == ("tv_l2", "competition")


def test_competition_uses_the_configured_temperature():
    outputs = make_outputs(logits=torch.tensor([[2.0, 0.0]]), student_logits=torch.tensor([[0.0, 2.0]]))
    config = TermConfig(competition=1.0)
    values = []
    for temperature in (3.0, 1.0):
        terms = build_terms(replace(config, competition_temperature=temperature), has_student=True)
        values.append(terms["competition"][1](outputs).item())
    assert values == [pytest.approx(competition(outputs, 3.0).item()), pytest.approx(competition(outputs, 1.0).item())]
    assert values[0] > values[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tv_l2": -1.0}, r"tv_l2: -1\.0 must be finite and at least 0"),
        ({"feature_norm": math.nan}, "feature_norm: nan must be finite"),
        ({"classification": math.inf}, "classification: inf must be finite"),
        ({"competition_temperature": 0.0}, "competition_temperature: 0 must be positive"),
    ],
)
def test_invalid_term_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        TermConfig(**values)


def test_loss_without_terms_raises():
    with pytest.raises(ConfigError, match="no term but competition has a weight"):
        TermConfig(classification=0.0, competition=1.0)
