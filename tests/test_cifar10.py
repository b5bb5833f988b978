"""The networks of the literature: their sizes, and the keys of public checkpoints."""

import pytest
import torch

from cifar10.networks import NETWORKS, build_network
from pipeline.models.weights import load_weights

# Parameters in millions that the literature states for ten classes.
PARAMETERS = {
    "resnet20": 0.27,
    "resnet56": 0.86,
    "resnet110": 1.73,
    "resnet18": 11.17,
    "resnet34": 21.28,
    "vgg11": 9.23,
    "wrn16_1": 0.18,
    "wrn16_2": 0.69,
    "wrn40_1": 0.56,
    "wrn40_2": 2.24,
}


def num_parameters(name: str, **options) -> int:
    with torch.device("meta"):
        network = build_network(name, in_channels=3, num_classes=10, **options)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_networks_have_the_size_of_the_literature(name, millions):
    assert round(num_parameters(name) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "shortcut", "expected"),
    [
        ("resnet20", "A", 269_722),
        ("resnet56", "A", 853_018),
        ("resnet18", "B", 11_173_962),
        ("resnet34", "B", 21_282_122),
    ],
)
def test_networks_have_the_number_of_parameters_of_public_code(name, shortcut, expected):
    assert num_parameters(name, shortcut=shortcut) == expected


def test_unknown_shortcut_raises():
    with pytest.raises(ValueError, match=r"shortcut: 'C' must be A .* or B"):
        build_network("resnet8", in_channels=3, num_classes=10, shortcut="C")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("resnet110", "resnet34")])
@pytest.mark.parametrize(("channels", "size", "num_classes"), [(1, 28, 7), (3, 64, 100)])
def test_networks_take_any_small_image(name, channels, size, num_classes):
    network = build_network(name, in_channels=channels, num_classes=num_classes).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, channels, size, size)).shape == (1, num_classes)


@pytest.mark.parametrize(
    ("name", "aliases"),
    [
        ("resnet18", {"fc.": "linear.", ".downsample.": ".shortcut."}),
        ("resnet20", {"fc.": "linear."}),
        ("vgg11", {"fc.": "classifier."}),
        ("wrn16_1", {"fc.": "linear."}),
    ],
)
def test_keys_of_public_checkpoints_are_renamed(tmp_path, name, aliases):
    source, target = (build_network(name, in_channels=3, num_classes=10) for _ in range(2))
    renamed = {}
    for key, tensor in source.state_dict().items():
        for ours, theirs in aliases.items():
            key = key.replace(ours, theirs)
        renamed[f"module.{key}"] = tensor
    torch.save({"net": renamed, "acc": 95.0, "epoch": 3}, tmp_path / "checkpoint.pth")
    load_weights(target, tmp_path / "checkpoint.pth", f"cifar10:{name}")
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
