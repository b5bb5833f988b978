"""Features of images: what a network computes just before its last linear layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import read_batches
from pipeline.models.classifier import Classifier

# Layers that can make the logits: a linear one, or a convolution in front of a global mean.
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of N images: `values` (N, D), `logits` (N, K) of the classes of the run, `labels` (N,); on the CPU."""

    values: Tensor
    logits: Tensor
    labels: Tensor


@torch.no_grad()
def last_linear(classifier: Classifier, shape: tuple[int, int, int]) -> str:
    """The name of the layer that makes the logits of images (C, H, W).

    It is the last linear layer or convolution, in the order of calls, with as many outputs as the network has logits.
    Raises ValueError when there is none.
    """
    calls: list[tuple[str, int]] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: calls.append((name, output.shape[1]))

    layers = {name: module for name, module in classifier.network.named_modules() if isinstance(module, LINEAR)}
    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    try:
        logits = classifier.all_logits(torch.zeros(1, *shape, device=classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, num_outputs in calls if num_outputs == logits.shape[1]]
    if not names:
        raise ValueError(
            f"{type(classifier.network).__name__} has no linear layer with {logits.shape[1]} outputs, whose input "
            "would be the features; name another network in evaluation.quality.network"
        )
    return names[-1]


@contextmanager
def _capture_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that each call of `layer` extends by its input (N, D), maps averaged over their positions."""
    captured: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0].float().flatten(2).mean(2) if inputs[0].dim() > 2 else inputs[0].float())

    handle = layer.register_forward_pre_hook(record)
    try:
        yield captured
    finally:
        handle.remove()


@torch.no_grad()
def extract_features(
    classifier: Classifier, layer: str, images: ImageSet, batches: Sequence[Sequence[int]]
) -> Features:
    """The inputs of the layer named `layer`, and the logits, of batches of indices of images, in one pass for each."""
    values, logits = [], []
    with _capture_inputs(classifier.network.get_submodule(layer)) as captured:
        for pixels in read_batches(images, batches):
            captured.clear()
            logits.append(classifier(to_unit(pixels.to(classifier.device))).float().cpu())
            values.append(captured[-1].cpu())
    indices = torch.tensor([index for batch in batches for index in batch])
    return Features(values=torch.cat(values), logits=torch.cat(logits), labels=images.labels[indices])
