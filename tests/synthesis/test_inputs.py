"""The initial noise of inversion: standard deviation, spectrum and correlation of the channels."""

import numpy as np
import pytest
import torch

from pipeline.runtime.config import ConfigError
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise


def draw_noise(shape=(64, 3, 32, 32), seed=0, **values) -> torch.Tensor:
    return init_noise(shape, InitNoiseConfig(**values), torch.Generator().manual_seed(seed))


def test_default_noise_is_white():
    assert torch.equal(draw_noise(), torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("values", [{}, {"spectrum": 1.0}, {"correlation": 0.9}, {"spectrum": 1.5, "correlation": 0.5}])
@pytest.mark.parametrize("size", [(32, 32), (15, 24), (2, 3)])
def test_noise_has_the_configured_std_at_any_size(values, size):
    inputs = draw_noise((200, 3, *size), std=0.7, **values)
    assert inputs.shape == (200, 3, *size)
    assert inputs.std() == pytest.approx(0.7, rel=0.03)
    assert inputs.mean() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("spectrum", [0.0, 1.0, 2.0])
def test_amplitude_falls_with_the_configured_spectrum(spectrum):
    amplitude = np.abs(np.fft.fft2(draw_noise(spectrum=spectrum).numpy())).mean((0, 1))
    for values in (amplitude[0, 1:16], amplitude[1:16, 0]):  # horizontal, then vertical frequencies 1/32 to 15/32
        slope = np.polyfit(np.log(np.arange(1, 16)), np.log(values), 1)[0]
        assert slope == pytest.approx(-spectrum, abs=0.1)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_channels_have_the_configured_correlation(correlation):
    measured = np.corrcoef(draw_noise(correlation=correlation).transpose(0, 1).flatten(1).numpy())
    np.testing.assert_allclose(measured, np.where(np.eye(3), 1, correlation), atol=0.02)


def test_images_are_independent_and_depend_on_the_seed():
    inputs = draw_noise((4, 1, 64, 64), spectrum=1.0)
    assert np.abs(np.corrcoef(inputs.flatten(1).numpy()) - np.eye(4)).max() < 0.5
    assert torch.equal(inputs, draw_noise((4, 1, 64, 64), spectrum=1.0))
    assert not torch.equal(inputs, draw_noise((4, 1, 64, 64), seed=1, spectrum=1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spectrum": -1.0}, r"spectrum: -1\.0 must be finite and at least 0"),
        ({"spectrum": float("inf")}, "spectrum: inf must be finite"),
        ({"correlation": 1.1}, r"correlation: 1\.1 must be in \[0, 1\]"),
        ({"std": 0.0}, r"std: 0\.0 must be finite and positive"),
    ],
)
def test_invalid_init_noise_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        InitNoiseConfig(**values)
