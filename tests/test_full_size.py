"""The counts of operations and bytes of a step, beside counts by hand, and the forecast from them."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.full_size import (
    CONFIG,
    ByteCounter,
    Gpu,
    StepSize,
    count_compiled,
    forecast,
    measure_step,
    open_distillation,
    open_inversion,
)
from pipeline.run import load_run

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
# Of a value in float32.
BYTES = 4


def test_bytes_moved_are_inputs_and_outputs_without_views():
    with FakeTensorMode():
        left, right = torch.zeros(10, 20), torch.zeros(20, 30)
        with ByteCounter() as counter:
            product = left @ right
            product.view(3, 100).t()
            assert counter.bytes_moved == BYTES * (200 + 600 + 300)
            product + torch.zeros(1).expand(10, 30)
    # zeros, then product and sum; the expanded tensor has one value
    assert counter.bytes_moved == BYTES * (1100 + 1 + 300 + 1 + 300)


def test_peak_counts_tensors_that_are_alive_together():
    with FakeTensorMode(), ByteCounter() as counter:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1
        del first
        third = second * 2
        del second, third
        torch.zeros(1500)
    assert counter.peak_bytes == BYTES * 2000


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_frozen_convolution_does_not_read_its_input_again(is_frozen):
    with FakeTensorMode():
        layer = nn.Conv2d(3, 8, 3, padding=1, bias=False).requires_grad_(not is_frozen)
        output = layer(torch.zeros(2, 3, 16, 16, requires_grad=True))
        with ByteCounter() as counter:
            torch.autograd.backward(output, torch.zeros(2, 8, 16, 16))
    inputs, outputs, weights = 2 * 3 * 256, 2 * 8 * 256, 3 * 8 * 9
    # Zeros; the gradient and the weights are read, the gradient of the input is written; else also input and weights.
    frozen = outputs + outputs + weights + inputs
    assert counter.bytes_moved == BYTES * (frozen if is_frozen else frozen + inputs + weights)


@contextmanager
def open_product(batch_size: int):
    weights = torch.zeros(20, 30, requires_grad=True)
    yield lambda images: (images @ weights).relu().sum(), [torch.zeros(batch_size, 20)]


@pytest.mark.slow
def test_a_compiled_step_moves_less_than_an_uncompiled_one():
    size = measure_step(partial(open_product, 64))
    assert size.flops == 2 * 2 * 64 * 20 * 30
    assert 0 < size.bytes_moved < size.eager_bytes_moved
    assert 0 < size.saved_bytes < size.eager_peak_bytes


@pytest.mark.slow
def test_the_compiler_fuses_a_chain_into_one_pass():
    values = torch.zeros(1000, requires_grad=True)
    moved, _ = count_compiled(lambda x: (x.sin() * 2 + 1).exp().sum(), [values])
    # forward: x to a sum; backward: x and the gradient of the sum to the gradient of x
    assert BYTES * 3000 <= moved < BYTES * 3100


GPU = Gpu(name="", flops=1e9, bytes_moved=1e9, memory_bytes=1000, assumed_share=0.5)


def step_size(*, flops: int, moved: int) -> StepSize:
    return StepSize(
        batch_size=10, flops=flops, eager_bytes_moved=0, eager_peak_bytes=300, bytes_moved=moved, saved_bytes=0
    )


def test_forecast_takes_the_slower_of_arithmetic_and_memory_for_each_step():
    config = load_run(CONFIG, ["synthesis.num_images=1700", "distill.steps=3600", "distill.batch_size=16"])
    sizes = {
        "inversion_0.5": step_size(flops=9_000_000, moved=1_000_000),
        "inversion_1": step_size(flops=0, moved=36_000_000),
        "distillation": step_size(flops=1_000_000_000, moved=500_000_000),
    }
    one, four = (forecast(config, sizes, GPU, num_gpus) for num_gpus in (1, 4))
    # Nine batches of 2,000 and 1,000 steps, at 9 ms and 36 ms, at half of the rate.
    assert one["synthesize"]["arithmetic_h"] == pytest.approx(9 * 2000 * 0.009 / 3600)
    assert one["synthesize"]["memory_h"] == pytest.approx(9 * (2000 * 0.001 + 1000 * 0.036) / 3600)
    assert one["synthesize"]["assumed_h"] == pytest.approx(2 * 9 * (18 + 36) / 3600)
    assert one["distill"]["assumed_h"] == pytest.approx(2)
    # Of the nine batches, one device has three.
    assert four["synthesize"]["assumed_h"] == pytest.approx(2 * 3 * (18 + 36) / 3600)
    assert four["total_h"] == pytest.approx(four["synthesize"]["assumed_h"] + 0.5)


def test_largest_batch_fits_in_the_memory():
    assert step_size(flops=0, moved=0).largest_batch(GPU) == 30


def test_steps_have_the_views_and_outputs_of_the_run():
    settings = ["classes=[5,3,1]", "synthesis.num_images=8", "synthesis.batch_size=4", "distill.batch_size=8"]
    scales = ["synthesis.inversion.view_scale=0.25", "distill.augment.view_scale=0.25"]
    config = load_run(CONFIG, [*settings, *scales])
    with FakeTensorMode():
        with open_inversion(config, 0.5) as (function, (view, labels)):
            assert view.shape == (4, 3, 28, 28)
            assert function(view, labels).shape == ()
        with open_distillation(config) as (function, (view, logits)):
            assert view.shape == (8, 3, 56, 56) and logits.shape == (8, 3)
            assert function(view, logits).shape == ()
