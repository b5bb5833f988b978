"""Random views: their pixels, and the targets that belong to them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.data.views import AugmentConfig, augment, random_resized_crop, roll_and_flip
from pipeline.runtime.config import ConfigError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(*shape: int) -> Tensor:
    """Pixels that are all different."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def one_hot_images(count: int, num_classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images whose pixels are the one-hot vector of their class, and these vectors as targets."""
    targets = F.one_hot(torch.arange(count) % num_classes, num_classes).float()
    return targets[:, :, None, None].expand(-1, -1, height, width).clone(), targets


def test_roll_wraps_by_every_shift_up_to_jitter_px(device):
    inputs = numbered(2, 3, 7, 9).to(device)
    shifts = [-2, -1, 0, 1, 2]
    rolls = {(y, x): torch.roll(inputs, (y, x), (2, 3)) for y in shifts for x in shifts}
    drawn_shifts = set()
    for seed in range(300):
        view = roll_and_flip(inputs, 2, False, seeded(seed))
        (shift,) = (shift for shift, rolled in rolls.items() if torch.equal(view, rolled))
        drawn_shifts.add(shift)
    assert drawn_shifts == set(rolls)


def test_flip_mirrors_half_of_the_views(device):
    inputs = numbered(2, 1, 3, 4).to(device)
    mirrored = 0
    for seed in range(200):
        view = roll_and_flip(inputs, 0, True, seeded(seed))
        assert torch.equal(view, inputs) or torch.equal(view, inputs.flip(3))
        mirrored += int(torch.equal(view, inputs.flip(3)))
    assert 70 < mirrored < 130


def test_view_without_jitter_and_flip_is_the_input(device):
    inputs = numbered(1, 1, 3, 4).to(device)
    for seed in range(20):
        assert torch.equal(roll_and_flip(inputs, 0, False, seeded(seed)), inputs)


def test_gradients_pass_through_roll_and_flip(device):
    inputs = numbered(1, 1, 4, 4).to(device).requires_grad_()
    roll_and_flip(inputs, 2, True, seeded(0)).sum().backward()
    assert torch.equal(inputs.grad, torch.ones_like(inputs))


def test_crop_pads_with_zeros_and_is_drawn_per_image(device):
    pixels = 1 + numbered(40, 2, 4, 5).to(device)
    targets = torch.zeros(40, 3, device=device)
    view, _ = augment(pixels, targets, AugmentConfig(crop_padding_px=1), seeded(0))
    padded = F.pad(pixels, (1, 1, 1, 1))
    drawn_shifts = set()
    for image, source in zip(view, padded, strict=True):
        (shift,) = ((y, x) for y in range(3) for x in range(3) if torch.equal(image, source[:, y : y + 4, x : x + 5]))
        drawn_shifts.add(shift)
    assert drawn_shifts == {(y, x) for y in range(3) for x in range(3)}


def test_random_resized_crop_has_the_configured_area_and_aspect(device):
    size, count = 64, 200
    ramp = (torch.arange(size) + 0.5) / size
    image = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)]).to(device)  # x, then y
    pixels, targets = image.expand(count, 2, size, size), torch.zeros(count, 1, device=device)
    view, _ = augment(pixels, targets, AugmentConfig(crop_area=(0.2, 0.6)), seeded(0))
    inner = view[:, :, 8:-8, 8:-8]  # a linear image stays linear, except at its border
    width = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) * size / (inner.shape[3] - 1)
    height = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) * size / (inner.shape[2] - 1)
    area, aspect = (width * height).cpu(), (width / height).cpu()
    assert 0.19 < area.min() < 0.23
    assert 0.57 < area.max() < 0.61
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.35
    for center, side in ((view[:, 0].mean((1, 2)), width), (view[:, 1].mean((1, 2)), height)):
        assert (center - side / 2).min() > -0.01
        assert (center + side / 2).max() < 1.01
        assert center.std() > 0.05


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_jitter_scales_around_its_fixed_point_per_image(device, name):
    pixels = 0.4 + 0.2 * torch.rand(100, 3, 4, 4, generator=seeded(1)).to(device)  # nothing is clipped
    targets = torch.zeros(100, 1, device=device)
    view, _ = augment(pixels, targets, AugmentConfig(**{name: 0.5}), seeded(0))
    fixed_point = {
        "brightness": torch.zeros_like(pixels),
        "contrast": pixels.mean((1, 2, 3), keepdim=True),
        "saturation": pixels.mean(1, keepdim=True),
    }[name]
    factor = ((view - fixed_point) / (pixels - fixed_point)).flatten(1).median(1).values
    torch.testing.assert_close(view, fixed_point + factor[:, None, None, None] * (pixels - fixed_point))
    assert 0.5 <= factor.min() < 0.55
    assert 1.45 < factor.max() <= 1.5


def test_color_jitter_stays_in_the_pixel_range(device):
    pixels, targets = torch.rand(50, 3, 4, 4, generator=seeded(0)).to(device), torch.zeros(50, 1, device=device)
    view, _ = augment(pixels, targets, AugmentConfig(brightness=1.0, contrast=1.0, saturation=1.0), seeded(0))
    assert view.min() == 0
    assert view.max() == 1


def test_augment_mirrors_half_of_the_images(device):
    pixels = numbered(200, 1, 2, 3).to(device)
    view, _ = augment(pixels, torch.zeros(200, 2, device=device), AugmentConfig(flip=True), seeded(0))
    mirrored = (view == pixels.flip(3)).flatten(1).all(1)
    unchanged = (view == pixels).flatten(1).all(1)
    assert torch.equal(mirrored, ~unchanged)
    assert 70 < mirrored.sum() < 130


def test_mixup_mixes_targets_like_pixels(device):
    pixels, targets = (t.to(device) for t in one_hot_images(12, 4, 5, 6))
    config = AugmentConfig(mixup_probability=1.0)
    for seed in range(20):
        view, mixed = augment(pixels, targets, config, seeded(seed))
        torch.testing.assert_close(view, mixed[:, :, None, None].expand_as(view))
        torch.testing.assert_close(mixed.sum(1), torch.ones(12, device=device))
        shares = mixed[(mixed > 0).sum(1) == 2]
        assert len(shares) > 0
        assert len({tuple(sorted(round(v, 5) for v in row if v > 0)) for row in shares.tolist()}) == 1


def test_cutmix_mixes_targets_by_area(device):
    pixels, targets = (t.to(device) for t in one_hot_images(12, 4, 7, 10))
    config = AugmentConfig(cutmix_probability=1.0)
    num_cut = 0
    for seed in range(40):
        view, mixed = augment(pixels, targets, config, seeded(seed))
        assert ((view == 0) | (view == 1)).all()
        torch.testing.assert_close(view.mean((2, 3)), mixed)
        for image, before in zip(view, pixels, strict=True):
            changed = (image != before).any(0)
            if changed.any():
                rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
                assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "not one rectangle"
                num_cut += 1
    assert num_cut > 100


def test_mixup_and_cutmix_follow_their_probabilities():
    pixels, targets = one_hot_images(8, 4, 6, 6)
    config = AugmentConfig(mixup_probability=0.3, cutmix_probability=0.3)
    counts = {"mixup": 0, "cutmix": 0, "none": 0}
    for seed in range(300):
        view, _ = augment(pixels, targets, config, seeded(seed))
        whole = bool(((view == 0) | (view == 1)).all())
        counts["none" if torch.equal(view, pixels) else "cutmix" if whole else "mixup"] += 1
    assert 60 < counts["mixup"] < 120
    assert 60 < counts["cutmix"] < 120
    assert 80 < counts["none"] < 180  # some boxes are empty


EVERYTHING = AugmentConfig(
    crop_area=(0.3, 1.0),
    crop_padding_px=2,
    flip=True,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    mixup_probability=0.5,
    cutmix_probability=0.5,
)


def test_view_depends_on_the_seed(device):
    pixels, targets = numbered(6, 3, 8, 8).to(device), torch.eye(6, device=device)
    first, again, other = (augment(pixels, targets, EVERYTHING, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_views_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    augment(numbered(6, 3, 8, 8), torch.eye(6), EVERYTHING, seeded(0))
    roll_and_flip(numbered(6, 3, 8, 8), 2, True, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_augment_of_a_single_image(device):
    pixels, targets = numbered(1, 3, 4, 4).to(device), torch.eye(3, device=device)[:1]
    for seed in range(20):
        view, mixed = augment(pixels, targets, EVERYTHING, seeded(seed))
        assert view.shape == pixels.shape
        torch.testing.assert_close(mixed, targets)


def test_augment_does_not_change_its_input():
    pixels, targets = numbered(4, 3, 6, 6), torch.eye(4)
    pixels_before, targets_before = pixels.clone(), targets.clone()
    for seed in range(10):
        augment(pixels, targets, EVERYTHING, seeded(seed))
    assert torch.equal(pixels, pixels_before)
    assert torch.equal(targets, targets_before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_padding_px": -1}, "crop_padding_px: -1 must be at least 0"),
        ({"crop_area": (0.0, 1.0)}, r"crop_area: \[0\.0, 1\.0\] must be a range within \(0, 1\]"),
        ({"crop_area": (0.9, 0.5)}, "crop_area"),
        ({"contrast": 1.5}, r"contrast: 1\.5 must be in \[0, 1\]"),
        ({"mixup_probability": 1.5}, r"mixup_probability: 1\.5 must be in \[0, 1\]"),
        ({"cutmix_alpha": 0.0}, r"cutmix_alpha: 0\.0 must be positive"),
        ({"mixup_probability": 0.6, "cutmix_probability": 0.6}, "their sum must be at most 1"),
    ],
)
def test_invalid_augment_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "view_of",
    [
        lambda pixels, targets, generator: roll_and_flip(pixels, 2, True, generator),
        lambda pixels, targets, generator: random_resized_crop(pixels, (0.4, 1.0), generator),
        *(
            lambda pixels, targets, generator, config=config: augment(pixels, targets, config, generator)[0]
            for config in (
                AugmentConfig(),
                AugmentConfig(crop_area=(0.3, 1.0)),
                AugmentConfig(crop_padding_px=2),
                AugmentConfig(flip=True),
                AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4),
                AugmentConfig(mixup_probability=1.0),
                AugmentConfig(cutmix_probability=1.0),
                EVERYTHING,
            )
        ),
    ],
)
def test_every_view_is_contiguous(device, channels, view_of):
    decoded = torch.zeros(4, 8, 6, channels, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)  # channels-last
    for seed in range(5):
        view = view_of(to_unit(decoded), torch.eye(4, device=device), seeded(seed))
        assert view.stride() == (channels * 48, 48, 6, 1)


@pytest.mark.parametrize(("scale", "size"), [(0.5, (8, 6)), (0.6, (10, 7)), (0.01, (2, 2))])
def test_a_view_scale_shrinks_the_views_without_aliasing(device, scale, size):
    """A checkerboard of single pixels has no frequency that the smaller view could show."""
    board = (torch.arange(16)[:, None] + torch.arange(12)) % 2
    pixels, targets = board.expand(4, 3, -1, -1).float().to(device), torch.eye(4, device=device)
    view, _ = augment(pixels, targets, AugmentConfig(view_scale=scale), seeded(0))
    assert view.shape == (4, 3, *size)
    assert (view - 0.5).abs().max() < 0.25
    cropped, _ = augment(pixels, targets, AugmentConfig(view_scale=scale, crop_area=(0.5, 1.0)), seeded(0))
    assert cropped.shape == (4, 3, *size)


@pytest.mark.parametrize("scale", [0, -0.5, 1.5])
def test_a_view_scale_outside_of_the_unit_interval_raises(scale):
    with pytest.raises(ConfigError, match=rf"view_scale: {scale} must be in \(0, 1\]"):
        AugmentConfig(view_scale=scale)
