"""Inversion as the published description suggests it, for comparison: what the fast loop is measured against.

Eager, in single precision and contiguous format; BatchNorm inputs measured in forward hooks, mean and variance in
passes of their own over a permuted copy; the network's weights keep their gradients; one synchronization a step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.codec import to_uint8
from pipeline.data.views import roll_and_flip
from pipeline.models.classifier import Classifier
from pipeline.runtime.schedules import learning_rates
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.inputs import input_range, init_noise, to_pixels
from pipeline.synthesis.statistics import LayerStatistics, batch_norm_layers
from pipeline.synthesis.terms import StepOutputs, build_terms


class _Hook:
    def __init__(self, layer: nn.Module) -> None:
        self.found: LayerStatistics | None = None
        self.handle = layer.register_forward_hook(self._measure)

    def _measure(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1)
        self.found = LayerStatistics(
            mean=mean, variance=variance, running_mean=layer.running_mean, running_variance=layer.running_var
        )


def reference_invert(
    teacher: Classifier, labels: Tensor, size: tuple[int, int], config: InversionConfig, generator: torch.Generator
) -> tuple[list[float], Tensor]:
    """The total loss of every step of the last phase of `config`, and uint8 images (N, C, H, W), on labels' device."""
    for parameter in teacher.network.parameters():
        parameter.requires_grad_()
    hooks = [_Hook(layer) for layer in batch_norm_layers(teacher.network)]
    terms = build_terms(config.terms, has_student=False)
    canvas = init_noise((len(labels), teacher.mean.shape[1], *size), config.canvas, generator).to(labels.device)
    canvas.requires_grad_()
    optimizer = torch.optim.Adam([canvas], lr=config.lr, betas=config.betas)
    low, high = input_range()
    totals = []
    for lr in learning_rates(config.schedule, config.lr, config.phases[-1].steps, config.warmup_fraction):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        teacher.network.zero_grad()
        view = roll_and_flip(canvas, config.shift_px, config.flip, generator)
        logits = teacher(to_pixels(view))
        statistics = [hook.found for hook in hooks if hook.found is not None]
        seen = StepOutputs(images=view, logits=logits, labels=labels, statistics=statistics)
        total = sum((weight * term(seen) for weight, term in terms.values()), torch.zeros((), device=labels.device))
        torch.autograd.backward(total)
        optimizer.step()
        if config.clamp:
            canvas.data.clamp_(low, high)
        totals.append(total.item())
    for hook in hooks:
        hook.handle.remove()
    teacher.freeze()
    return totals, to_uint8(to_pixels(canvas.detach()))
