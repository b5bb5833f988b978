"""The diversity of images: copies are 0, unrelated images 1, and near-copies raise a warning."""

import pytest
import torch
from torch import Tensor

from pipeline.report.diversity import measure_diversity


def noise(count: int, *, seed: int = 0, size_px: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size_px, size_px), generator=generator).to(torch.uint8)


LABELS = torch.arange(4).repeat_interleave(6)


def test_unrelated_images_are_at_distance_one():
    diversity = measure_diversity([noise(24)], LABELS)
    assert list(diversity.within) == [0, 1, 2, 3]
    assert list(diversity.within.values()) == pytest.approx([1.0] * 4, abs=0.05)
    assert diversity.between == pytest.approx(1.0, abs=0.05)
    assert diversity.mean == pytest.approx(1.0, abs=0.05)
    assert (diversity.collapsed, diversity.num_copies, diversity.num_images) == ([], 0, 24)


def test_batches_of_any_size_are_one_set():
    whole, parts = measure_diversity([noise(24)], LABELS), measure_diversity(noise(24).split(7), LABELS)
    assert parts == whole


def test_near_copies_of_an_image_are_a_collapsed_class():
    images = noise(24, size_px=64)
    images[6:12] = (images[6].int() + torch.randint(-8, 9, (6, 3, 64, 64))).clamp(0, 255).to(torch.uint8)
    diversity = measure_diversity([images], LABELS)
    assert diversity.collapsed == [1]
    assert diversity.num_copies == 6
    assert diversity.within[1] < 0.1


def test_noise_does_not_hide_copies():
    """Fine noise makes the pixels of two copies as different as those of unrelated images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 4, 4, generator=generator)
    coarse[:6] = coarse[0]
    images = torch.nn.functional.interpolate(coarse, size=(64, 64)) * 170
    images += 85 * torch.rand(images.shape, generator=generator)
    assert measure_diversity([images.to(torch.uint8)], LABELS).collapsed == [0]


def test_all_images_alike_are_collapsed_in_every_class():
    diversity = measure_diversity([noise(1).expand(24, -1, -1, -1)], LABELS)
    assert diversity.collapsed == [0, 1, 2, 3]
    assert diversity.between == 0


def test_contrast_does_not_matter():
    images = noise(24)
    faint = measure_diversity([images // 8 + 100], LABELS)
    assert faint.mean == pytest.approx(measure_diversity([images], LABELS).mean, abs=0.05)


def test_a_single_image_of_a_class_has_no_distance():
    diversity = measure_diversity([noise(3)], torch.tensor([0, 0, 1]))
    assert diversity.within[1] is None
    assert measure_diversity([noise(1)], torch.tensor([0])).mean is None
    assert measure_diversity([noise(2)], torch.tensor([5, 5])).between is None


def test_images_without_contrast_are_copies():
    gray = torch.full((4, 1, 8, 8), 100, dtype=torch.uint8)
    assert measure_diversity([gray], torch.tensor([0, 0, 1, 1])).collapsed == [0, 1]
