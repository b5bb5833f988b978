"""Networks from named sources: cifar10, torchvision, timm, and a user's own Python."""

import urllib.error
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.models.config import ImageConfig, ModelConfig, Normalization
from pipeline.runtime.config import nearest
from pipeline.runtime.device import is_out_of_memory
from pipeline.runtime.python_source import load_python

# How options of timm and torchvision start that load files or download. A weight file has options too, and none of
# these may be among them: some versions unpickle what they load.
LOADING_OPTIONS = ("checkpoint_path", "pretrained", "cache_dir", "weights")


def is_published_name(config: ModelConfig) -> bool:
    """Whether `weights` names published weights of torchvision or timm, and not a file."""
    if config.weights is None:
        return False
    if config.source.startswith("timm:"):
        return config.weights == "DEFAULT"  # timm names its weights in the model, as in resnet50.a1_in1k
    return config.source.startswith("torchvision:") and Path(config.weights).suffix == "" and "/" not in config.weights


def published_name(config: ModelConfig) -> str:
    """The name of the published weights; DEFAULT is an alias that depends on the version of the library.

    Nothing is downloaded. Raises ValueError when the network has no such weights.
    """
    kind, _, name = config.source.partition(":")
    if kind == "torchvision":
        return str(_torchvision_weights(name, config.weights).name)
    timm = _import_timm(name)
    if not timm.models.is_model_pretrained(name):
        raise ValueError(f"{config.source} has no published weights; put the path of a weight file into `weights`")
    preset = timm.models.get_pretrained_cfg(name)
    return f"{preset.architecture}.{preset.tag}"


def build_network(config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalization | None]:
    """The network, and the (mean, std) that its published weights were trained with, or None.

    Raises ValueError when the source, its options or its published weights are not available, or the memory is full.
    """
    kind, _, name = config.source.partition(":")
    build = {"cifar10": _cifar10, "torchvision": _torchvision, "timm": _timm, "python": _python}[kind]
    try:
        network, published = build(name, config, images)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{config.source} does not take options {config.options}: {error}; correct the options"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"{config.source} with options {config.options} does not fit the memory; choose a smaller network"
        ) from error
    except urllib.error.URLError as error:
        raise ValueError(
            f"{config.source}: weights {config.weights} could not be downloaded ({error.reason}); "
            "put a weight file's path into `weights` instead, and its normalization into `mean` and `std`"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{config.source} must return a torch.nn.Module, it returned {type(network).__name__}")
    return network, published


def _cifar10(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, None]:
    from cifar10 import networks

    return networks.build_network(
        name, in_channels=images.channels, num_classes=images.num_classes, **config.options
    ), None


def _torchvision(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalization | None]:
    import torchvision.models

    _require_torchvision_model(name)
    _require_no_loading(config)
    if not is_published_name(config):
        return torchvision.models.get_model(name, num_classes=images.num_classes, **config.options), None
    weights = _torchvision_weights(name, config.weights)
    preset = weights.transforms()
    network = torchvision.models.get_model(name, weights=weights, **config.options)
    return network, (tuple(preset.mean), tuple(preset.std))


def _torchvision_weights(name: str, weights: str | None) -> Any:
    """The published weights of a network by their name or alias; raises ValueError when there are none."""
    import torchvision.models

    _require_torchvision_model(name)
    members = torchvision.models.get_model_weights(name).__members__
    if weights not in members:
        raise ValueError(
            f"torchvision:{name} has no weights {weights!r}{nearest(weights, members)} (it has {', '.join(members)})"
        )
    return members[weights]


def _require_torchvision_model(name: str) -> None:
    import torchvision.models

    if name not in torchvision.models.list_models(torchvision.models):
        raise ValueError(f"torchvision has no classifier {name!r}; torchvision.models.list_models() lists them")


def _timm(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, Normalization | None]:
    timm = _import_timm(name)
    _require_no_loading(config)
    network = timm.create_model(
        name,
        pretrained=is_published_name(config),
        num_classes=images.num_classes,
        in_chans=images.channels,
        **config.options,
    )
    preset: dict[str, Any] = network.pretrained_cfg
    return network, (tuple(preset["mean"]), tuple(preset["std"])) if is_published_name(config) else None


def _require_no_loading(config: ModelConfig) -> None:
    """Raise ValueError for an option that loads or downloads what `weights` does not name."""
    for key, value in config.options.items():
        if key.startswith(LOADING_OPTIONS):
            raise ValueError(
                f"{config.source}: options.{key}={value!r} would load another file; name a weight file or published "
                "weights as `weights` and drop this option"
            )


def _import_timm(name: str) -> Any:
    """The package, which must have a model of that name."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"timm:{name} needs the timm package: pip install timm") from None
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() lists them")
    return timm


def _python(name: str, config: ModelConfig, images: ImageConfig) -> tuple[nn.Module, None]:
    return load_python(name)(**config.options), None
