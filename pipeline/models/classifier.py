"""`Classifier`: a network together with its normalisation, built from a named source, with weights loaded safely."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from pipeline.models.batch_norm import freeze_batch_norms
from pipeline.models.config import ImageConfig, ModelConfig, Normalisation
from pipeline.models.sources import _build_network, _is_published_name
from pipeline.models.weights import load_weights


class Classifier(nn.Module):
    """A network and its normalisation: pixels in [0, 1] of shape (N, C, H, W) to logits of shape (N, num_classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        logits: Tensor = self.network(self.normalise(pixels))
        return logits

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] in the space the network was trained in."""
        return (pixels - self.mean) / self.std

    def freeze(self) -> Self:
        """Evaluation mode, and no weight asks for a gradient (else a third of the backward pass is wasted).

        Weights can be loaded after it, but not trained.
        """
        freeze_batch_norms(self.network)
        return self.eval().requires_grad_(False)

    @property
    def normalisation(self) -> Normalisation:
        """(mean, std)."""
        return tuple(self.mean.flatten().tolist()), tuple(self.std.flatten().tolist())

    @property
    def num_parameters(self) -> int:
        """Trainable and frozen parameters, without buffers."""
        return sum(p.numel() for p in self.parameters())


def build_classifier(
    config: ModelConfig,
    images: ImageConfig,
    *,
    seed: int = 0,
    default_normalisation: Normalisation | None = None,
) -> Classifier:
    """Build the network of `config`, load its weights if it names any, and check that it fits `images`.

    Initial weights are drawn with `seed`. Raises ValueError when the source or the weights cannot be had, the weights
    belong to another network, or channels or classes do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch's initialisers read only the global generator
        network, published = _build_network(config, images)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    else:
        mean, std = published or default_normalisation or ((0.0,) * images.channels, (1.0,) * images.channels)
    if len(mean) != images.channels or len(std) != images.channels:
        raise ValueError(
            f"{config.source}: mean {mean} and std {std} need one value for each of images.channels={images.channels}"
        )
    if config.weights and not _is_published_name(config):
        load_weights(network, Path(config.weights), config.source)
    classifier = Classifier(network, mean, std)
    check_fit(classifier, config, images)
    return classifier


def load_frozen(config: ModelConfig, images: ImageConfig, device: torch.device) -> Classifier:
    """A classifier with its weights, frozen, on `device`."""
    return build_classifier(config, images).freeze().to(device)


def check_fit(classifier: Classifier, config: ModelConfig, images: ImageConfig) -> None:
    """Raise ValueError unless the classifier turns images of that shape into `num_classes` logits."""
    was_training = classifier.training
    try:
        with torch.no_grad():
            logits = classifier.eval()(torch.zeros(1, *images.shape, device=classifier.mean.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{config.source} cannot read images of (C, H, W) = {images.shape}: {error}") from error
    finally:
        classifier.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (1, images.num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{config.source} answers one image with {found}, images.num_classes={images.num_classes} "
            f"needs (1, {images.num_classes}); set images.num_classes or the network's options"
        )
