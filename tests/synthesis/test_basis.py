"""The variables of inversion: a basis keeps the images, and weights their frequencies and colors."""

import pytest
import torch

from pipeline.synthesis.basis import FourierBasis, build_basis
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise

NATURAL = InitNoiseConfig(spectrum=1.5, correlation=0.87, std=0.8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 20), (1, 8, 9), (2, 2, 2)])
@pytest.mark.parametrize("noise", [NATURAL, InitNoiseConfig(), InitNoiseConfig(correlation=1.0)], ids=str)
def test_decoding_gives_the_encoded_inputs(shape, noise):
    basis = FourierBasis(shape, noise, CPU)
    inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(basis.decode(basis.encode(inputs)), inputs, atol=1e-4, rtol=1e-4)


def test_variables_of_the_initial_noise_have_one_scale():
    inputs = init_noise((64, 3, 32, 32), NATURAL, torch.Generator().manual_seed(0))
    variables = FourierBasis((3, 32, 32), NATURAL, CPU).encode(inputs)
    assert variables.shape == (64, 3, 32, 17, 2)
    power = 2 * variables[:, :, 1:16, 1:16].square().mean((0, 4))  # of complex amplitudes, away from the real ones
    assert power.mean((1, 2)).tolist() == pytest.approx([1, 1, 1], rel=0.1)
    assert power[:, :5, :5].mean().item() == pytest.approx(power[:, -5:, -5:].mean().item(), rel=0.1)


def test_equal_steps_change_low_frequencies_and_gray_the_most():
    basis = FourierBasis((3, 32, 32), NATURAL, CPU)

    def change(color: int, row: int, column: int) -> torch.Tensor:
        variables = torch.zeros(1, 3, 32, 17, 2)
        variables[0, color, row, column, 0] = 1
        return basis.decode(variables)[0]

    low, high = change(0, 1, 1), change(0, 10, 10)
    assert low.std() > 10 * high.std()
    assert torch.allclose(low[0], low[1], atol=1e-6) and torch.allclose(low[0], low[2], atol=1e-6)
    chroma = change(1, 1, 1)
    assert chroma.sum(0).abs().max() < 1e-5
    assert low.std() > 3 * chroma.std()


def test_pixels_are_the_inputs():
    inputs = torch.randn(2, 3, 4, 4)
    basis = build_basis("pixels", (3, 4, 4), NATURAL, CPU)
    assert basis.encode(inputs) is inputs and basis.decode(inputs) is inputs
