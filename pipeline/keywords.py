"""The keyword arguments of `pipeline.api`, and the configurations that they state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Required, Self, TypedDict

import torch
from torch import Tensor, nn

from pipeline.data.codec import ImageFormat
from pipeline.data.image_sets import ArrayImages, ImageSet
from pipeline.distillation.config import DistillConfig
from pipeline.models.classifier import Classifier
from pipeline.models.config import Normalization
from pipeline.models.modules import device_of, frozen_copy
from pipeline.runtime.acceleration import Compile, Precision, resolve_acceleration
from pipeline.runtime.config import ConfigError, nearest, parse, to_plain
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import Schedule
from pipeline.synthesis.basis import BasisName
from pipeline.synthesis.config import InversionConfig, SynthesisConfig, resolve_inversion
from pipeline.synthesis.invert import OnInversionStep

# Steps of an inversion, or (scale, steps) of each of its phases from coarse to fine; the last scale is 1.
Steps = int | Sequence[tuple[float, int]]
# H = W, or (H, W).
Size = int | tuple[int, int]
# A set, or pixels uint8 (N, C, H, W) and labels (N,).
Images = ImageSet | tuple[Tensor, Tensor]

# What suits most teachers: the scale-free feature term needs no tuning for each network (docs/synthesis.md).
INVERSION_DEFAULTS: Mapping[str, Any] = {
    "lr": 0.2,
    "terms": {"classification": 1.0, "feature_divergence": 10.0, "tv_l2": 1e-3},
}
DISTILL_DEFAULTS: Mapping[str, Any] = {"batch_size": 128, "lr": 0.1}
# Images that are inverted together, if the user names no other number.
BATCH_SIZE = 128
# Keys of the `synthesis` section that are keywords.
SET_KEYS = ("image_format", "jpeg_quality", "images_per_shard")


class NetworkKeywords(TypedDict, total=False):
    """Keywords of every function: the normalization of plain modules, and the device."""

    mean: Sequence[float] | Tensor
    std: Sequence[float] | Tensor
    device: torch.device | str


class InversionKeywords(NetworkKeywords, total=False):
    """Keywords of `invert` and `synthesize`: keys of `synthesis.inversion`, and others."""

    batch_size: int
    seed: int
    ensemble: Sequence[nn.Module]
    terms: Mapping[str, float]
    init_noise: Mapping[str, float]
    basis: BasisName
    lr: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup_fraction: float
    jitter_px: int
    flip: bool
    crop_area: tuple[float, float]
    view_scale: float
    clamp: bool
    precision: Precision
    compile: Compile
    cuda_graphs: bool
    log_every: int


class InvertKeywords(InversionKeywords, total=False):
    """Keywords of `invert`."""

    on_step: OnStep


class SynthesisKeywords(InversionKeywords, total=False):
    """Keywords of `synthesize`: also keys of `synthesis`, and others."""

    steps: Required[Steps]
    verifier: nn.Module
    class_titles: Sequence[str]
    image_format: ImageFormat
    jpeg_quality: int
    images_per_shard: int


class DistillKeywords(NetworkKeywords, total=False):
    """Keywords of `distill`: keys of `distill`, and others."""

    seed: int
    on_step: OnStep
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw"]
    momentum: float
    weight_decay: float
    schedule: Schedule
    warmup_fraction: float
    augment: Mapping[str, Any]
    label_smoothing: float
    precision: Precision
    compile: Compile
    log_every: int
    memory_gib: float
    temperature: float
    label_weight: float
    init: Literal["random", "teacher"]


@dataclass(frozen=True)
class Shared:
    """What the networks of a call share: the shape (C, H, W) of images, the normalization of plain ones, the device."""

    shape: tuple[int, int, int]
    normalization: Normalization | None
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, size: int | Sequence[int], keywords: Mapping[str, Any]) -> Self:
        """That of a call whose first network is `model`; `size` is H = W, (H, W) or (C, H, W)."""
        mean, std = (_floats(name, keywords.get(name)) for name in ("mean", "std"))
        if (mean is None) != (std is None):
            raise ValueError("mean, std: give both or neither")
        normalization = None if mean is None or std is None else (mean, std)
        if normalization and (len(normalization[0]) != len(normalization[1]) or min(normalization[1]) <= 0):
            raise ValueError(f"mean, std: {normalization} must be one value for each channel, std positive")
        num_channels = model.mean.shape[1] if isinstance(model, Classifier) else len(mean or range(3))
        channels, height, width = (num_channels, *([size] * 2 if isinstance(size, int) else size))[-3:]
        device = torch.device(keywords["device"]) if "device" in keywords else device_of(model)
        return cls((channels, height, width), normalization, device)

    @property
    def num_pixels(self) -> int:
        """H times W."""
        return math.prod(self.shape[1:])

    def frozen(self, module: nn.Module) -> Classifier:
        """A frozen copy of a module, on the device; raises ValueError when it does not fit the images."""
        return frozen_copy(module, self.shape, self.normalization, self.device)


def _floats(name: str, values: Any) -> tuple[float, ...] | None:
    """One number for each channel, of a sequence, an array or a tensor; None for None."""
    try:
        return None if values is None else tuple(map(float, values))
    except (TypeError, ValueError, RuntimeError):
        text = " ".join(str(values).split())
        raise ValueError(f"{name}: {text} must be one number for each channel") from None


def label_tensor(labels: Tensor | Sequence[int]) -> Tensor:
    """Labels as int64 (N,); raises ValueError for none, and for what are not whole numbers in one dimension."""
    tensor = torch.as_tensor(labels)
    if tensor.dim() != 1 or (len(tensor) and (tensor.is_floating_point() or tensor.dtype == torch.bool)):
        raise ValueError(f"labels: {tensor.dtype} {tuple(tensor.shape)}; give whole numbers of shape (N,)")
    if not len(tensor):
        raise ValueError("labels: there are none")
    return tensor.long()


def image_set(images: Images) -> ImageSet:
    """The images of a call as a set; raises ValueError for an empty set and for pixels and labels that are not one.

    Raises TypeError for what is neither a set nor a pair.
    """
    if isinstance(images, tuple) and len(images) == 2 and all(isinstance(part, Tensor) for part in images):
        pixels, labels = images[0], label_tensor(images[1])
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"images: pixels are {pixels.dtype} {tuple(pixels.shape)}, labels {tuple(labels.shape)}; give uint8 "
                "pixels (N, C, H, W), which are (255 * x).round().to(torch.uint8) of pixels x in [0, 1], and labels "
                "(N,)"
            )
        return ArrayImages(pixels, labels)
    if isinstance(images, tuple) or not (hasattr(images, "labels") and hasattr(images, "batch")):
        raise TypeError(
            f"images: {type(images).__name__} is neither a set with `labels` and `batch`, such as a ShardSet, nor a "
            "pair of tensors, pixels uint8 (N, C, H, W) and labels (N,)"
        )
    label_tensor(images.labels)
    return images


def inversion_callback(keywords: InvertKeywords) -> OnInversionStep | None:
    """The callback of inversion that calls `on_step` with the step and the terms; None without `on_step`."""
    on_step = keywords.get("on_step")
    return None if on_step is None else lambda step, terms, _: on_step(step, terms)


def inversion_config(steps: Steps, keywords: InvertKeywords, num_pixels: int, device: torch.device) -> InversionConfig:
    """The configuration of the inversion of images of `num_pixels` pixels in all, as it runs on `device`.

    Raises ConfigError for unknown keywords and for values that do not fit.
    """
    keys = _keys_of(InversionConfig, check_keywords(keywords, InvertKeywords))
    return _inversion_config(steps, keys, num_pixels, device)


def _inversion_config(steps: Steps, keys: Mapping[str, Any], num_pixels: int, device: torch.device) -> InversionConfig:
    phases = [{"steps": steps}] if isinstance(steps, int) else [{"scale": s, "steps": n} for s, n in steps]
    config = parse(InversionConfig, {**INVERSION_DEFAULTS, **keys, "phases": phases})
    if config.terms.competition:
        raise ConfigError(
            "terms.competition: needs a student of an earlier round; run a configuration with synthesis.rounds of at "
            "least 2, or set it to 0"
        )
    return resolve_inversion(config, num_pixels, device)


def synthesis_config(num_images: int, keywords: SynthesisKeywords, shared: Shared) -> SynthesisConfig:
    """The configuration of a set of images, as it runs on their device; raises ConfigError."""
    if "steps" not in keywords:
        raise ConfigError("missing key steps: give it a value (whole number)")
    keys = _keys_of(InversionConfig, check_keywords(keywords, SynthesisKeywords))
    inversion = _inversion_config(keywords["steps"], keys, num_images * shared.num_pixels, shared.device)
    plain = {
        "num_images": num_images,
        "batch_size": keywords.get("batch_size", min(BATCH_SIZE, num_images)),
        "inversion": to_plain(inversion),
        **{key: value for key, value in keywords.items() if key in SET_KEYS},
    }
    return parse(SynthesisConfig, plain)


def distill_config(steps: int, keywords: DistillKeywords, shared: Shared) -> DistillConfig:
    """The configuration of a distillation, as it runs on its device; raises ConfigError."""
    keys = _keys_of(DistillConfig, check_keywords(keywords, DistillKeywords))
    config = parse(DistillConfig, {**DISTILL_DEFAULTS, **keys, "steps": steps})
    num_pixels = config.steps * config.batch_size * shared.num_pixels
    return resolve_acceleration(config, shared.device, num_pixels, config.SECTION)


def check_keywords(keywords: Mapping[str, Any], kind: Any) -> Mapping[str, Any]:
    """The keywords of a call, unchanged; raises ConfigError for one that its `kind`, a TypedDict, does not have."""
    names = kind.__required_keys__ | kind.__optional_keys__
    for name in keywords:
        if name not in names:
            raise ConfigError(f"unknown keyword {name}{nearest(name, names)} (known: {', '.join(sorted(names))})")
    return keywords


def _keys_of(config: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: keywords[field.name] for field in fields(config) if field.name in keywords}
