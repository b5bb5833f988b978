"""Classifiers of modules that live in a program."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier, try_image
from pipeline.models.config import Normalization, identity_normalization


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU if there is none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def as_classifier(
    module: nn.Module, shape: tuple[int, int, int], normalization: Normalization | None, device: torch.device
) -> Classifier:
    """The module on `device`, as a classifier of images of `shape` (C, H, W).

    `normalization` is that of a plain module, by default none; a `Classifier` has its own. Raises ValueError when it
    has another number of channels, and when the module cannot read such images or does not return logits.
    """
    name, classifier = type(module).__name__, module
    if not isinstance(classifier, Classifier):
        classifier = Classifier(module, normalization or identity_normalization(shape[0]), num_classes=0)
    num_channels = classifier.mean.shape[1]
    if num_channels != shape[0]:
        raise ValueError(
            f"mean, std: those of {name} have {num_channels} values, images have {shape[0]} channels; give one value "
            "for each channel"
        )
    logits = try_image(classifier.to(device), name, shape)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} returns {output} for one image; it must return logits of shape (1, K)")
    if classifier.classes is None:
        classifier.num_classes = logits.shape[1]
    return classifier


def frozen_copy(
    module: nn.Module, shape: tuple[int, int, int], normalization: Normalization | None, device: torch.device
) -> Classifier:
    """A frozen copy of the module, which stays as it is; see `as_classifier`."""
    return as_classifier(copy.deepcopy(module), shape, normalization, device).freeze()


def require_same_classes(teacher: Classifier, others: Mapping[str, Classifier]) -> None:
    """Raise ValueError for one of the `others`, by their keywords, whose classes are not those of the teacher."""
    for name, network in others.items():
        if network.class_labels != teacher.class_labels:
            raise ValueError(
                f"{name}: its {network.num_classes} classes are not the {teacher.num_classes} of the teacher; for some "
                "outputs of a network, pass Classifier(model, (mean, std), K, classes=[...])"
            )
