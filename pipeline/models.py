"""`Classifier`: a network together with its normalisation, built from a named source, with weights loaded safely."""

import importlib
import importlib.util
import json
import sys
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.batch_norm import freeze_batch_norms
from pipeline.config import ConfigError, fingerprint, to_plain
from pipeline.files import atomic_file, sha256_of
from pipeline.weights import load_weights

SOURCES = ("cifar10", "torchvision", "timm", "python")
METADATA_KEY = "dreamdistill"

# (mean, std), one value a channel.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What every network of a run sees and says: (channels, height, width) pixels in, `num_classes` logits out."""

    channels: int
    height: int
    width: int
    num_classes: int

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.num_classes < 2:
            raise ConfigError(f"num_classes: {self.num_classes} must be at least 2")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where a network comes from: `cifar10:resnet20`, `torchvision:resnet50`, `timm:NAME`, `python:module:function`.

    `options` go to its constructor. `weights` is a safetensors or torch file, or (torchvision, timm) the name of
    published weights such as `DEFAULT`. `mean` and `std` normalise pixels in [0, 1], one value a channel; without
    them the published weights' own are used, or mean 0 and deviation 1.
    """

    source: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        kind, _, name = self.source.partition(":")
        if kind not in SOURCES or not name:
            raise ConfigError(f"source: {self.source!r} must be KIND:NAME with KIND one of {', '.join(SOURCES)}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean, std: give both or neither")
        if self.std is not None and not (self.std and min(self.std) > 0):
            raise ConfigError(f"std: {list(self.std)} must be one positive value a channel")


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


def _is_published_name(config: ModelConfig) -> bool:
    if config.weights is None:
        return False
    if config.source.startswith("timm:"):
        return config.weights == "DEFAULT"  # timm names its weights in the model, as in resnet50.a1_in1k
    return config.source.startswith("torchvision:") and Path(config.weights).suffix == "" and "/" not in config.weights


def _published_name(config: ModelConfig) -> str:
    """The name of published weights behind the alias DEFAULT, which another version of the library gives another."""
    kind, _, name = config.source.partition(":")
    assert config.weights is not None
    if kind == "torchvision":
        weights = _torchvision_weights(name).get(config.weights)
        return str(weights.name) if weights else config.weights
    timm = _import_timm(name)
    preset = timm.models.get_pretrained_cfg(name)
    return f"{preset.architecture}.{preset.tag}" if preset else config.weights


def _build_network(config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalisation | None]:
    """The network, and the (mean, std) that its published weights were trained with, or None."""
    kind, _, name = config.source.partition(":")
    build = {"cifar10": _cifar10, "torchvision": _torchvision, "timm": _timm, "python": _python}[kind]
    try:
        network, published = build(name, config, images)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"{config.source} does not take options {config.options}: {error}") from error
    except urllib.error.URLError as error:
        raise ValueError(
            f"{config.source}: weights {config.weights} could not be downloaded ({error.reason}); "
            "put a weight file's path into `weights` instead"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{config.source} must return a torch.nn.Module, it returned {type(network).__name__}")
    return network, published


def _cifar10(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, None]:
    from cifar10.networks import build_network

    return build_network(name, in_channels=images.channels, num_classes=images.num_classes, **config.options), None


def _torchvision(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalisation | None]:
    import torchvision.models

    members = _torchvision_weights(name)
    if config.weights is None or not _is_published_name(config):
        return torchvision.models.get_model(name, num_classes=images.num_classes, **config.options), None
    if config.weights not in members:
        raise ValueError(f"torchvision:{name} has no weights {config.weights!r}; it has {', '.join(members)}")
    weights = members[config.weights]
    preset = weights.transforms()
    network = torchvision.models.get_model(name, weights=weights, **config.options)
    return network, (tuple(preset.mean), tuple(preset.std))


def _torchvision_weights(name: str) -> Mapping[str, Any]:
    """The published weights of a network by name, aliases among them."""
    import torchvision.models

    if name not in torchvision.models.list_models(torchvision.models):
        raise ValueError(f"torchvision has no classifier {name!r}; torchvision.models.list_models() lists them")
    members: Mapping[str, Any] = torchvision.models.get_model_weights(name).__members__
    return members


def _timm(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalisation | None]:
    timm = _import_timm(name)
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() lists them")
    network = timm.create_model(
        name,
        pretrained=_is_published_name(config),
        num_classes=images.num_classes,
        in_chans=images.channels,
        **config.options,
    )
    preset: dict[str, Any] = network.pretrained_cfg
    return network, (tuple(preset["mean"]), tuple(preset["std"])) if _is_published_name(config) else None


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(f"timm:{name} needs the timm package: pip install timm") from None
    return timm


def _python(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, None]:
    place, separator, function_name = name.rpartition(":")
    if not separator:
        raise ValueError(f"python:{name} must be python:package.module:function or python:path/to/file.py:function")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    function: Callable[..., nn.Module] | None = getattr(module, function_name, None)
    if function is None:
        raise ValueError(f"python:{name}: {place} has no {function_name!r}")
    return function(**config.options), None


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"python:{name}: {error}; is its folder on PYTHONPATH?") from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"python:{path}: no such file")
    name = f"dreamdistill_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def save_classifier(path: Path, classifier: Classifier, config: ModelConfig, identity: Mapping[str, Any]) -> None:
    """Write the network's tensors as safetensors; model, normalisation and origin go into the metadata."""
    tensors = {  # clones, since safetensors refuses tensors that share memory, as tied weights do
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in classifier.network.state_dict().items()
    }
    mean, std = classifier.normalisation
    description = {
        "source": config.source,
        "options": config.options,
        "mean": mean,
        "std": std,
        "fingerprint": fingerprint(identity),
        "identity": to_plain(identity),
    }
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(description, sort_keys=True)})
    with atomic_file(path) as file:
        file.write(data)


def read_description(path: Path) -> dict[str, Any]:
    """What `save_classifier` wrote beside the tensors; raises ValueError for files of other origin."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); remove it to make it anew") from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by a run; move it away, or name it as a model's `weights`")
    description: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return description


def weights_identity(config: ModelConfig, key: str) -> dict[str, Any]:
    """What a network is: its configuration, and the SHA-256 of its weight file and of its `python:FILE.py` code.

    Raises ValueError, naming `key`, when there is no such file.
    """
    identity: dict[str, Any] = to_plain(config)
    if config.weights and not _is_published_name(config):
        path = Path(config.weights)
        if not path.is_file():
            raise ValueError(f"{key}: there is no file {path}; correct the path")
        del identity["weights"]  # the content counts, not where it lies
        identity["sha256"] = sha256_of(path)
    elif config.weights:
        identity["weights"] = _published_name(config)
    kind, _, name = config.source.partition(":")
    code = Path(name.rpartition(":")[0])
    if kind == "python" and code.is_file():
        identity["code_sha256"] = sha256_of(code)
    return identity
