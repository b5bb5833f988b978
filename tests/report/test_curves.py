"""Curves of metric lines."""

import numpy as np
import pytest
from pages import metric

from pipeline.report.curves import MAX_POINTS, curve_of, figure_names, smoothed


def test_curve_is_the_mean_over_batches_with_its_range():
    lines = [metric("synthesize", s, batch=b, tv_l2=v + b) for b in (0, 2) for s, v in ((0, 3.0), (5, 2.0))]
    curve = curve_of(lines, "tv_l2", "a label")
    assert curve.label == "a label"
    assert curve.steps.tolist() == [0, 5]
    assert (curve.low.tolist(), curve.mean.tolist(), curve.high.tolist()) == ([3, 2], [4, 3], [5, 4])


def test_lines_without_the_figure_do_not_count():
    lines = [metric("synthesize", 0, tv_l2=1.0), metric("synthesize", 1, competition=2.0)]
    assert curve_of(lines, "competition").steps.tolist() == [1]


def test_names_are_those_of_losses_in_their_order():
    lines = [metric("synthesize", 0, batch=1, tv_l2=1.0, lr=0.1), metric("distill", 0, loss=1.0, lr=0.1)]
    assert figure_names(lines) == ["tv_l2", "loss"]


def test_long_curves_are_thinned_to_means_of_neighbors():
    curve = curve_of([metric("distill", step, loss=float(step)) for step in range(10 * MAX_POINTS)], "loss")
    assert len(curve.steps) == MAX_POINTS
    assert curve.mean[0] == curve.steps[0] == pytest.approx(4.5)


def test_smoothing_reduces_noise_and_keeps_the_level():
    noise = np.random.default_rng(0).normal(5.0, 1.0, 200)
    smooth = smoothed(noise)
    assert smooth.std() < 0.5 * noise.std()
    assert smooth.mean() == pytest.approx(noise.mean(), abs=0.1)
    assert np.array_equal(smoothed(noise[:5]), noise[:5])  # too few points to lose one
