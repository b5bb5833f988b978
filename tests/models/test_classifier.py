"""A classifier has the normalization of its weights, fits its images, and answers as the published network does."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.classifier import Classifier, build_classifier, load_frozen
from pipeline.models.config import ImageConfig, ModelConfig

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=5)
SMALL = ModelConfig(source="cifar10:resnet8", options={"width": 4})


def test_pixels_are_normalized_per_channel(device):
    classifier = Classifier(nn.Identity(), ((0.5, 0.2), (0.25, 0.1)), 2).to(device)
    pixels = torch.tensor([[[[0.0, 1.0]], [[0.2, 0.3]]]], device=device)
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 1.0]]]], device=device)
    torch.testing.assert_close(classifier.normalize(pixels), expected)
    torch.testing.assert_close(classifier(pixels), expected)


def test_normalization_is_that_of_config_then_of_caller_then_none():
    default = ((0.1,) * 3, (0.2,) * 3)
    own = replace(SMALL, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert build_classifier(own, IMAGES, default_normalization=default).normalization == (own.mean, own.std)
    torch.testing.assert_close(build_classifier(SMALL, IMAGES, default_normalization=default).normalization, default)
    assert build_classifier(SMALL, IMAGES).normalization == ((0.0,) * 3, (1.0,) * 3)


def test_normalization_of_another_number_of_channels_raises():
    with pytest.raises(ValueError, match=r"need one value for each of images\.channels=3"):
        build_classifier(replace(SMALL, mean=(0.5,), std=(0.5,)), IMAGES)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig(source="torchvision:resnet18"), (1, 32, 32)),
        (ModelConfig(source="torchvision:vit_b_16", options={"image_size": 32}), (3, 48, 48)),
    ],
    ids=["channels", "size"],
)
def test_images_that_a_network_cannot_read_raise(config, shape):
    channels, height, width = shape
    images = ImageConfig(channels=channels, height=height, width=width, num_classes=5)
    with pytest.raises(ValueError) as caught:
        build_classifier(config, images)
    assert str(caught.value).startswith(f"{config.source} cannot read images of (C, H, W) = {shape}: ")


@pytest.mark.parametrize(
    ("logits", "description"), [("x.mean((2, 3)) @ torch.ones(3, 7)", r"\(1, 7\)"), ("(x, x)", "tuple")]
)
def test_output_that_is_not_one_logit_per_class_raises(tmp_path, logits, description):
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n\nclass Network(torch.nn.Module):\n"
        f"    def forward(self, x):\n        return {logits}\n\ndef network():\n    return Network()\n"
    )
    message = rf"returns {description} for one image, 5 classes need \(1, 5\); set images\.num_classes, `classes` or"
    with pytest.raises(ValueError, match=message):
        build_classifier(ModelConfig(source=f"python:{path}:network"), IMAGES)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (build_classifier(SMALL, IMAGES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(dict(same.state_dict()), dict(first.state_dict()), rtol=0, atol=0)
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)
    torch.manual_seed(6)
    same = build_classifier(SMALL, IMAGES, seed=1)
    torch.testing.assert_close(dict(same.state_dict()), dict(first.state_dict()), rtol=0, atol=0)


DATA = os.environ.get("DREAMDISTILL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DREAMDISTILL_DATA names no folder with real networks and images")
CIFAR10 = ImageConfig(channels=3, height=32, width=32, num_classes=10)


@pytest.fixture(scope="module")
def test_images():
    """The first 500 test images of CIFAR-10 as pixels in [0, 1], and their labels."""
    with np.load(Path(DATA) / "cifar10" / "cifar10_test.npz") as arrays:
        pixels, labels = arrays["x"][:500], arrays["y"][:500]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels.astype(np.int64))


@pytest.fixture(scope="module")
def published_loader():
    """The loader that was published with the real weights."""
    spec = importlib.util.spec_from_file_location("published_loader", Path(DATA) / "cifar_models" / "cifar_resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_data
@pytest.mark.parametrize(
    ("weights", "source", "shortcut"),
    [
        ("cifar10_resnet20_akamaster", "cifar10:resnet20", "A"),
        ("cifar10_resnet56_akamaster", "cifar10:resnet56", "A"),
        ("cifar10_resnet56_chenyaofo", "cifar10:resnet56", "B"),
    ],
)
@torch.no_grad()
def test_real_weights_have_the_logits_and_accuracy_of_their_own_loader(
    device, test_images, published_loader, weights, source, shortcut
):
    path = Path(DATA) / "cifar_models" / f"{weights}.safetensors"
    reference, facts = published_loader.load(str(path))
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    config = ModelConfig(source=source, options={"shortcut": shortcut}, weights=str(path), mean=mean, std=std)
    classifier = load_frozen(config, CIFAR10, device)
    pixels, labels = test_images
    normalized = (pixels[:64] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    logits = torch.cat([classifier(batch.to(device)).cpu() for batch in pixels.split(100)])
    torch.testing.assert_close(logits[:64], reference(normalized), atol=1e-3, rtol=1e-4)
    top1 = 100 * (logits.argmax(1) == labels).float().mean().item()
    assert abs(top1 - facts["top1_cifar10_test"]) <= 3


@needs_data
def test_real_weights_with_the_other_shortcut_raise():
    path = Path(DATA) / "cifar_models" / "cifar10_resnet56_chenyaofo.safetensors"
    config = ModelConfig(source="cifar10:resnet56", options={"shortcut": "A"}, weights=str(path))
    message = r"does not belong to cifar10:resnet56: \d+ unexpected \(layer2\.0\.downsample"
    with pytest.raises(ValueError, match=message):
        build_classifier(config, CIFAR10)
