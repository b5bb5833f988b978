"""The arguments of `pipeline.api` as users give them, or an error that names the argument, its value and the fix."""

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.image_sets import ArrayImages, ImageSet
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import describe
from pipeline.runtime.distributed import usable_device

Array = Tensor | NDArray[Any]
Labels = Array | Sequence[int]
# A set, or pixels uint8 (N, C, H, W) and labels (N,).
Images = ImageSet | tuple[Array, Labels]
# H = W, or (H, W).
Size = int | tuple[int, int]
# Steps of an inversion, or (scale, steps) of each of its phases from coarse to fine; the last scale is 1.
Steps = int | Sequence[tuple[float, int]]

# What labels and pixels are, in a message.
LABELS, PIXELS = "whole numbers of shape (N,)", "uint8 pixels (N, C, H, W)"
# Characters of a value in a message.
SHOWN_CHARACTERS = 80


def shown(value: Any) -> str:
    """The value and its type, in one line that is not too long."""
    text = " ".join(describe(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({type(value).__name__})"


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of Python, NumPy or PyTorch; raises ValueError for others, and for one under the `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name}: expected a whole number, got {shown(value)}")
    if least is not None and number < least:
        raise ValueError(f"{name}: {number} must be at least {least}")
    return number


def image_size(size: Any) -> tuple[int, int]:
    """(H, W) of H = W or of (H, W), at least two pixels each; raises ValueError for what is neither."""
    sides = size if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size: {shown(size)} must be H = W, such as 32, or (H, W), such as (32, 48)")
    height, width = (whole_number("size", side, 2) for side in sides)
    return height, width


def phases(steps: Any) -> list[dict[str, Any]]:
    """The phases of an inversion, of a number of steps or of (scale, steps) for each; raises ValueError for others."""
    if isinstance(steps, Sequence) and not isinstance(steps, str):
        if all(isinstance(phase, Sequence) and len(phase) == 2 for phase in steps):
            return [{"scale": scale, "steps": count} for scale, count in steps]
        raise ValueError(f"steps: {shown(steps)} must be (scale, steps) of each phase, such as [(0.5, 300), (1, 100)]")
    return [{"steps": whole_number("steps", steps, 1)}]


def numbers(name: str, values: Any) -> tuple[float, ...] | None:
    """One finite number for each channel, of a sequence, an array or a tensor; None for None."""
    if values is None:
        return None
    try:
        floats = tuple(map(float, values))
    except (TypeError, ValueError, RuntimeError):
        floats = ()
    if not floats or not all(map(math.isfinite, floats)):
        raise ValueError(f"{name}: {shown(values)} must be one number for each channel")
    return floats


def device_named(name: str, value: Any) -> torch.device:
    """The device; raises ValueError for one that does not exist or on which nothing can be computed."""
    if not isinstance(value, str | torch.device):
        raise ValueError(f"{name}: expected cpu, cuda or cuda:N, got {shown(value)}")
    try:
        return usable_device(str(value))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def module(name: str, value: Any) -> nn.Module:
    """The module; raises ValueError for what is none, such as its class or its weights."""
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type):
        fix = f"call it: {value.__name__}(...)"
    elif isinstance(value, Mapping):
        fix = "build the network and give it these weights: network.load_state_dict(...)"
    else:
        fix = "give the network itself"
    raise ValueError(f"{name}: expected a torch.nn.Module, got {shown(value)}; {fix}")


def modules(name: str, values: Any) -> tuple[nn.Module, ...]:
    """The modules of a list; raises ValueError for what is no list of modules."""
    if isinstance(values, nn.Module):
        raise ValueError(f"{name}: expected a list of modules, got one {type(values).__name__}; write it as [module]")
    if not isinstance(values, Sequence | nn.ModuleList) or isinstance(values, str):
        raise ValueError(f"{name}: expected a list of modules, got {shown(values)}")
    return tuple(module(f"{name}.{i}", value) for i, value in enumerate(values))


def texts(name: str, values: Any) -> tuple[str, ...]:
    """The texts of a list; raises ValueError for others."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name}: expected a list of texts, got {shown(values)}")
    return tuple(values)


def function(name: str, value: Any) -> Callable[..., Any]:
    """The function; raises ValueError for what cannot be called."""
    if not callable(value):
        raise ValueError(f"{name}: expected a function, got {shown(value)}")
    called: Callable[..., Any] = value
    return called


def path_of(name: str, value: Any) -> Path:
    """The path; raises ValueError for what is none."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}: expected a path, got {shown(value)}")
    return Path(value)


def label_tensor(labels: Any) -> Tensor:
    """Labels as int64 (N,); raises ValueError for none, and for what are not whole numbers in one dimension."""
    tensor = _tensor("labels", labels, LABELS)
    if tensor.dim() != 1 or (len(tensor) and not _holds_whole_numbers(tensor)):
        raise ValueError(f"labels: {tensor.dtype} {tuple(tensor.shape)}; give {LABELS}")
    if not len(tensor):
        raise ValueError("labels: there are none")
    return tensor.long()


def _tensor(name: str, values: Any, form: str) -> Tensor:
    """A tensor of these values, in the memory of an array where PyTorch can use it; ValueError where it cannot."""
    try:
        is_array = isinstance(values, np.ndarray)
        return torch.as_tensor(np.require(values, requirements=["C", "W"]) if is_array else values)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: {shown(values)}; give {form}") from None


def _holds_whole_numbers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_labels(labels: Tensor, teacher: Classifier, student: Classifier | None = None) -> None:
    """Raise ValueError unless all labels are classes of the teacher, and the student has as many classes."""
    if student is not None and student.num_classes != teacher.num_classes:
        raise ValueError(f"the student has {student.num_classes} classes, the teacher {teacher.num_classes}")
    invalid = labels[(labels < 0) | (labels >= teacher.num_classes)]
    if len(invalid):
        raise ValueError(f"labels: {int(invalid[0])} is not in 0..{teacher.num_classes - 1}, the teacher's classes")


def image_set(images: Any) -> ImageSet:
    """The images of a call as a set; raises ValueError for an empty set and for pixels and labels that are not one.

    Raises TypeError for what is neither a set nor a pair.
    """
    if isinstance(images, tuple) and len(images) == 2 and isinstance(images[0], Tensor | np.ndarray):
        pixels, labels = _tensor("images", images[0], PIXELS), label_tensor(images[1])
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"images: pixels are {pixels.dtype} {tuple(pixels.shape)}, labels {tuple(labels.shape)}; give "
                f"{PIXELS}, which are (255 * x).round().to(torch.uint8) of pixels x in [0, 1], and labels (N,)"
            )
        return ArrayImages(pixels, labels)
    if isinstance(images, tuple) or not (hasattr(images, "labels") and hasattr(images, "batch")):
        raise TypeError(
            f"images: {type(images).__name__} is neither a set with `labels` and `batch`, such as a ShardSet, nor a "
            "pair of pixels uint8 (N, C, H, W) and labels (N,)"
        )
    label_tensor(images.labels)
    image_set: ImageSet = images
    return image_set
