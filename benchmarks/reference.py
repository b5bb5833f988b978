"""Inversion as the published description suggests it: the loop with which the fast loop is compared.

It is eager, in single precision and in contiguous format. Forward hooks measure the inputs of the BatchNorm layers,
mean and variance in separate passes, the variance over a permuted copy. The weights of the network have gradients, and
each step synchronizes once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.codec import to_uint8
from pipeline.data.views import roll_and_flip
from pipeline.models.classifier import Classifier
from pipeline.runtime.schedules import learning_rates
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.inputs import init_noise, input_range, to_pixels
from pipeline.synthesis.statistics import LayerStatistics, batch_norm_layers
from pipeline.synthesis.terms import StepOutputs, build_terms


class _Hook:
    """Measures the input of one BatchNorm layer in every forward pass."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.statistics: LayerStatistics | None = None
        self.handle = layer.register_forward_hook(self._measure)

    def _measure(self, layer: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1)
        self.statistics = LayerStatistics(
            mean=mean, variance=variance, running_mean=layer.running_mean, running_variance=layer.running_var
        )


@contextmanager
def _hooks(teacher: Classifier) -> Iterator[list[_Hook]]:
    """A hook on each BatchNorm layer, and weights with gradients; both end with the block."""
    teacher.network.requires_grad_()
    hooks = [_Hook(layer) for layer in batch_norm_layers(teacher.network)]
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.handle.remove()
        teacher.freeze()


def reference_invert(
    teacher: Classifier,
    image_size: tuple[int, int],
    labels: Tensor,
    config: InversionConfig,
    generator: torch.Generator,
) -> tuple[list[float], Tensor]:
    """Run the last phase of `config` for labels (N,); `image_size` is (height, width).

    Returns the total loss of every step, and the images, uint8 (N, C, H, W), on the device of the labels.
    """
    terms = build_terms(config.terms, has_student=False)
    inputs = init_noise((len(labels), teacher.mean.shape[1], *image_size), config.init_noise, generator)
    inputs = inputs.to(labels.device).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=config.lr, betas=config.betas)
    low, high = input_range()
    totals = []
    with _hooks(teacher) as hooks:
        for lr in learning_rates(config.schedule, config.lr, config.phases[-1].steps, config.warmup_fraction):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            teacher.network.zero_grad()
            view = roll_and_flip(inputs, config.jitter_px, config.flip, generator)
            logits = teacher(to_pixels(view))
            statistics = [hook.statistics for hook in hooks if hook.statistics is not None]
            outputs = StepOutputs(images=view, logits=logits, labels=labels, statistics=statistics)
            total = torch.stack([weight * term(outputs) for weight, term in terms.values()]).sum()
            torch.autograd.backward(total)
            optimizer.step()
            if config.clamp:
                inputs.data.clamp_(low, high)
            totals.append(total.item())
    return totals, to_uint8(to_pixels(inputs.detach()))
