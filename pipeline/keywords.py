"""The keyword arguments of `pipeline.api`, and the configurations that they state."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, Required, Self, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.arguments import Steps, device_named, function, module, modules, numbers, phases, texts, whole_number
from pipeline.data.codec import ImageFormat
from pipeline.distillation.config import DistillConfig
from pipeline.models.classifier import Classifier
from pipeline.models.config import Normalization
from pipeline.models.modules import device_of, frozen_copy
from pipeline.runtime.acceleration import Compile, CudaGraphs, Precision, resolve_acceleration
from pipeline.runtime.config import ConfigError, nearest, parse, to_plain
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import Schedule
from pipeline.synthesis.basis import BasisName
from pipeline.synthesis.config import InversionConfig, SynthesisConfig, resolve_inversion
from pipeline.synthesis.invert import OnInversionStep

# Within a point of the best weights of four teachers (docs/synthesis.md, one weighting for all networks).
INVERSION_DEFAULTS: Mapping[str, Any] = {
    "lr": 0.2,
    "terms": {"classification": 0.1, "feature_divergence": 30.0, "tv_l2": 1e-3},
}
DISTILL_DEFAULTS: Mapping[str, Any] = {"batch_size": 128, "lr": 0.1}
# Images that are inverted together, if the user names no other number.
BATCH_SIZE = 128
# Keys of the `synthesis` section that are keywords.
SET_KEYS = ("image_format", "jpeg_quality", "images_per_shard")


# How a keyword that is no key of a configuration is read.
READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "device": device_named,
    "seed": whole_number,
    "batch_size": partial(whole_number, least=1),
    "on_step": function,
    "ensemble": modules,
    "verifier": module,
    "class_titles": texts,
}
# Keywords for which None is as good as none.
OPTIONAL = ("mean", "std", "device", "ensemble", "on_step", "verifier", "class_titles")

Keywords = TypeVar("Keywords", bound=Mapping[str, Any])


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
    cuda_graphs: CudaGraphs
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
    optimizer: Literal["sgd", "adamw", "muon"]
    momentum: float
    weight_decay: float
    schedule: Schedule
    warmup_fraction: float
    augment: Mapping[str, Any]
    label_smoothing: float
    precision: Precision
    compile: Compile
    cuda_graphs: CudaGraphs
    log_every: int
    memory_gib: float
    temperature: float
    label_weight: float
    feature_weight: float
    init: Literal["random", "teacher"]


@dataclass(frozen=True)
class Shared:
    """What the networks of a call share: the shape (C, H, W) of images, the normalization of plain ones, the device."""

    shape: tuple[int, int, int]
    normalization: Normalization | None
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, size: Sequence[int], keywords: Mapping[str, Any]) -> Self:
        """That of a call with these keywords, whose first network is `model`; `size` is (H, W) or (C, H, W)."""
        mean, std = (numbers(name, keywords.get(name)) for name in ("mean", "std"))
        if (mean is None) != (std is None):
            raise ValueError("mean, std: give both or neither")
        normalization = None if mean is None or std is None else (mean, std)
        if normalization and (len(normalization[0]) != len(normalization[1]) or min(normalization[1]) <= 0):
            raise ValueError(f"mean, std: {normalization} must be one value for each channel, std positive")
        num_channels = model.mean.shape[1] if isinstance(model, Classifier) else len(mean or range(3))
        channels, height, width = (num_channels, *size)[-3:]
        return cls((channels, height, width), normalization, keywords.get("device") or device_of(model))

    @property
    def num_pixels(self) -> int:
        """H times W."""
        return math.prod(self.shape[1:])

    def frozen(self, module: nn.Module) -> Classifier:
        """A frozen copy of a module, on the device; raises ValueError when it does not fit the images."""
        return frozen_copy(module, self.shape, self.normalization, self.device)


def inversion_callback(keywords: InvertKeywords) -> OnInversionStep | None:
    """The callback of inversion that calls `on_step` with the step and the terms; None without `on_step`."""
    on_step = keywords.get("on_step")
    return None if on_step is None else lambda step, terms, _: on_step(step, terms)


def inversion_config(
    steps: Steps, keywords: Mapping[str, Any], num_pixels: int, device: torch.device
) -> InversionConfig:
    """The configuration of the inversion of images of `num_pixels` pixels in all, as it runs on `device`.

    Raises ConfigError for values that do not fit.
    """
    plain = {**INVERSION_DEFAULTS, **_keys_of(InversionConfig, keywords), "phases": phases(steps)}
    try:
        config = parse(InversionConfig, plain)
    except ConfigError as error:
        raise ConfigError(f"steps: {error}" if str(error).startswith("phases") else str(error)) from None
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
    num_images = whole_number("num_images", num_images, 1)
    inversion = inversion_config(keywords["steps"], keywords, num_images * shared.num_pixels, shared.device)
    plain = {
        "num_images": num_images,
        "batch_size": keywords.get("batch_size", min(BATCH_SIZE, num_images)),
        "inversion": to_plain(inversion),
        **{key: value for key, value in keywords.items() if key in SET_KEYS},
    }
    return parse(SynthesisConfig, plain)


def distill_config(steps: int, keywords: DistillKeywords, shared: Shared) -> DistillConfig:
    """The configuration of a distillation, as it runs on its device; raises ConfigError."""
    config = parse(DistillConfig, {**DISTILL_DEFAULTS, **_keys_of(DistillConfig, keywords), "steps": steps})
    num_pixels = config.steps * config.batch_size * shared.num_pixels
    return resolve_acceleration(config, shared.device, num_pixels, config.SECTION)


def read_keywords(keywords: Keywords, kind: Any) -> Keywords:
    """The keywords of a call, read; their `kind` is a TypedDict.

    Raises ConfigError for an unknown one, and ValueError for one of another type. Keys of a configuration are checked
    when it is made.
    """
    names = kind.__required_keys__ | kind.__optional_keys__
    for name in keywords:
        if name not in names:
            raise ConfigError(f"unknown keyword {name}{nearest(name, names)} (known: {', '.join(sorted(names))})")
    given = {name: value for name, value in keywords.items() if value is not None or name not in OPTIONAL}
    read = {name: READERS[name](name, value) if name in READERS else value for name, value in given.items()}
    return cast(Keywords, read)


def _keys_of(config: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: keywords[field.name] for field in fields(config) if field.name in keywords}
