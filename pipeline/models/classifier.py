"""`Classifier`: a network with its normalization, built from a named source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.models.batch_norm import freeze_batch_norms
from pipeline.models.config import ImageConfig, ModelConfig, Normalization, identity_normalization
from pipeline.models.sources import build_network, is_published_name
from pipeline.models.weights import load_weights
from pipeline.runtime.device import is_out_of_memory


class Classifier(nn.Module):
    """A network and its normalization: pixels in [0, 1] of shape (N, C, H, W) to logits of shape (N, num_classes).

    Of the network's outputs, `classes` chooses some, in this order; by default there are `num_classes`, all of them.
    `class_titles` are the titles of the outputs for people, empty if they are not known.
    """

    mean: Tensor
    std: Tensor
    classes: Tensor | None
    class_titles: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        normalization: Normalization,
        num_classes: int,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes if classes is None else len(classes)
        self.register_buffer("classes", None if classes is None else torch.tensor(classes), persistent=False)
        mean, std = normalization
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        logits = self.all_logits(pixels)
        return logits if self.classes is None else logits[:, self.classes]

    def all_logits(self, pixels: Tensor) -> Tensor:
        """Logits of all outputs of the network, of pixels in [0, 1]."""
        logits: Tensor = self.network(self.normalize(pixels))
        return logits

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], normalized as the network was trained."""
        return (pixels - self.mean) / self.std

    def freeze(self) -> Self:
        """Set evaluation mode, and turn off the gradients of weights, which are a third of the backward pass.

        Weights can be loaded afterwards, but not trained.
        """
        self.eval()  # before layers are replaced, so that references to replaced ones keep this mode
        self.network = freeze_batch_norms(self.network)
        return self.requires_grad_(False)

    @property
    def class_labels(self) -> list[int]:
        """The outputs of the network that the classifier has, in their order."""
        return list(range(self.num_classes)) if self.classes is None else self.classes.tolist()

    @property
    def normalization(self) -> Normalization:
        """(mean, std)."""
        return tuple(self.mean.flatten().tolist()), tuple(self.std.flatten().tolist())

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.mean.device

    @property
    def num_parameters(self) -> int:
        """The number of trainable and frozen parameters, without buffers."""
        return sum(p.numel() for p in self.parameters())


def build_classifier(
    config: ModelConfig,
    images: ImageConfig,
    *,
    seed: int = 0,
    default_normalization: Normalization | None = None,
    classes: Sequence[int] | None = None,
) -> Classifier:
    """Build the network of `config`, load its weights if it names any, and check that it fits `images`.

    Initial weights are drawn with `seed`. `default_normalization` applies if neither the config nor published weights
    give one. `classes` chooses some of the network's `images.num_classes` outputs. Raises ValueError when the source or
    the weights are not available, when the weights belong to another network, or when channels or classes do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch's initializers read only the global generator
        network, published = build_network(config, images)
    if config.mean is not None and config.std is not None:
        normalization = config.mean, config.std
    else:
        normalization = published or default_normalization or identity_normalization(images.channels)
    mean, std = normalization
    if len(mean) != images.channels or len(std) != images.channels:
        raise ValueError(
            f"{config.source}: mean {mean} and std {std} need one value for each of images.channels={images.channels}; "
            "give as many"
        )
    if config.weights and not is_published_name(config):
        load_weights(network, Path(config.weights), config.source)
    classifier = Classifier(network, normalization, images.num_classes, classes)
    check_fit(classifier, config, images)
    return classifier


def load_frozen(
    config: ModelConfig, images: ImageConfig, device: torch.device, classes: Sequence[int] | None = None
) -> Classifier:
    """A classifier with its weights, frozen, on `device`; see `build_classifier`."""
    return build_classifier(config, images, classes=classes).freeze().to(device)


def check_fit(classifier: Classifier, config: ModelConfig, images: ImageConfig) -> None:
    """Raise ValueError unless the network maps images of that shape to `images.num_classes` logits."""
    logits = try_image(classifier, config.source, images.shape)
    if not isinstance(logits, Tensor) or logits.shape != (1, images.num_classes):
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{config.source} returns {output} for one image, {images.num_classes} classes need "
            f"(1, {images.num_classes}); set images.num_classes, `classes` or the network's options"
        )


def try_image(classifier: Classifier, name: str, shape: tuple[int, int, int]) -> Any:
    """The output for one black image of `shape` (C, H, W); ValueError with `name` when the network cannot read it."""
    was_training = classifier.training
    try:
        with torch.no_grad():
            return classifier.eval().all_logits(torch.zeros(1, *shape, device=classifier.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        is_large = is_out_of_memory(error)
        reason = "it does not fit the memory; choose a smaller network, or smaller images" if is_large else error
        raise ValueError(f"{name} cannot read images of (C, H, W) = {shape}: {reason}") from error
    finally:
        classifier.train(was_training)
