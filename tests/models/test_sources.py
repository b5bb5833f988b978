"""Networks of every source, and the messages when a source has no network."""

import urllib.error

import pytest
import torch
import torchvision.models._api

from pipeline.models.classifier import build_classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.sources import build_network, is_published_name, published_name
from pipeline.runtime.config import ConfigError

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=5)
USER_CODE = """
from torch import nn

def network(num_classes=5, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))

def text():
    return "no network"
"""


@pytest.fixture
def user_file(tmp_path, monkeypatch):
    """A module of a user, both importable and a file."""
    path = tmp_path / "user_networks_of_a_test.py"
    path.write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


@pytest.mark.parametrize(
    ("source", "options", "channels"),
    [
        ("cifar10:resnet8", {"width": 4, "shortcut": "A"}, 1),
        ("cifar10:resnet18", {"width": 4}, 3),
        ("torchvision:resnet18", {"zero_init_residual": True}, 3),
        ("timm:resnet10t", {}, 1),
        ("python:user_networks_of_a_test:network", {"channels": 2}, 2),
        ("python:FILE:network", {}, 3),
    ],
)
def test_every_source_maps_images_to_logits(user_file, source, options, channels):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    images = ImageConfig(channels=channels, height=32, width=40, num_classes=5)
    config = ModelConfig(source=source.replace("FILE", str(user_file)), options=options)
    classifier = build_classifier(config, images)
    assert classifier(torch.rand(2, *images.shape)).shape == (2, 5)
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("width", [10**15, 10**18])
def test_network_that_no_memory_holds_is_named(width):
    with pytest.raises(ValueError, match=f"^cifar10:resnet8 with options .*{width}.* does not fit the memory; choose"):
        build_network(ModelConfig(source="cifar10:resnet8", options={"width": width}), IMAGES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar10:resnet_20", r"cifar10 has no network 'resnet_20'; did you mean resnet20\?"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'"),
        ("timm:resnet19", "timm has no model 'resnet19'"),
        ("python:absent_module_of_a_test:f", "No module named 'absent_module_of_a_test'.*PYTHONPATH"),
        ("python:absent.py:f", r"python:absent\.py: no such file"),
        ("python:user_networks_of_a_test:nothing", "user_networks_of_a_test has no 'nothing'"),
        ("python:user_networks_of_a_test", "must be python:package.module:function"),
        ("python:user_networks_of_a_test:text", "must return a torch.nn.Module, it returned str"),
    ],
)
@pytest.mark.usefixtures("user_file")
def test_source_without_a_network_raises(source, message):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build_network(ModelConfig(source=source), IMAGES)


def test_unknown_option_raises():
    with pytest.raises(ValueError, match=r"torchvision:resnet18 does not take options \{'depth': 3\}"):
        build_network(ModelConfig(source="torchvision:resnet18", options={"depth": 3}), IMAGES)


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("torchvision:resnet18", "weights", "DEFAULT"),
        ("torchvision:resnet18", "pretrained", True),
        ("timm:resnet10t", "checkpoint_path", "x.pth"),
        ("timm:resnet10t", "pretrained_cfg", {"file": "x.pth"}),
        ("timm:resnet10t", "cache_dir", "x"),
    ],
)
def test_option_that_loads_another_file_raises(source, key, value):
    if source.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=rf"{source}: options\.{key}=.* would load another file; name .* `weights`"):
        build_network(ModelConfig(source=source, options={key: value}), IMAGES)


@pytest.mark.parametrize("use", [published_name, lambda config: build_network(config, IMAGES)])
def test_unknown_published_weights_raise(use):
    message = r"resnet18 has no weights 'IMAGENET1K_V9'; did you mean IMAGENET1K_V1\? \(it has IMAGENET1K_V1, "
    with pytest.raises(ValueError, match=message):
        use(ModelConfig(source="torchvision:resnet18", weights="IMAGENET1K_V9"))


def test_timm_model_without_published_weights_raises():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm:darknet17 has no published weights"):
        published_name(ModelConfig(source="timm:darknet17", weights="DEFAULT"))


def test_failed_download_raises_with_the_fix(monkeypatch):
    def fail(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ValueError, match=r"could not be downloaded.*put a weight file's path"):
        build_network(ModelConfig(source="torchvision:squeezenet1_1", weights="DEFAULT"), IMAGES)


@pytest.mark.parametrize(
    ("source", "name"), [("torchvision:resnet50", "IMAGENET1K_V2"), ("timm:resnet18", "resnet18.a1_in1k")]
)
def test_default_is_an_alias_of_published_weights(source, name):
    config = ModelConfig(source=source, weights="DEFAULT")
    assert is_published_name(config)
    assert published_name(config) == name


def test_other_weights_of_timm_are_a_path():
    assert not is_published_name(ModelConfig(source="timm:resnet10t", weights="foo"))
    with pytest.raises(ValueError, match="weights: there is no file foo"):
        build_classifier(ModelConfig(source="timm:resnet10t", weights="foo"), IMAGES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "resnet20"}, "source: 'resnet20' must be KIND:NAME"),
        ({"source": "keras:resnet20"}, "source: 'keras:resnet20' must be KIND:NAME"),
        ({"source": "cifar10:"}, "source: 'cifar10:' must be KIND:NAME"),
        ({"source": "cifar10:resnet8", "mean": (0.5,)}, "mean, std: give both or neither"),
        (
            {"source": "cifar10:resnet8", "mean": (0.5,), "std": (0.0,)},
            r"std: \[0\.0\] must be one positive value per channel",
        ),
        (
            {"source": "cifar10:resnet8", "mean": (float("nan"),), "std": (1.0,)},
            r"mean: \[nan\] is not for pixels in \[0, 1\]; correct it",
        ),
        (
            {"source": "cifar10:resnet8", "mean": (0.5,), "std": (1e30,)},
            r"std: \[1e\+30\] is not for pixels in \[0, 1\]; correct it",
        ),
    ],
)
def test_invalid_model_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)
