"""Features are the inputs of the layer that makes the logits, whatever the network looks like."""

import pytest
import torch
from torch import nn

from pipeline.data.image_sets import ArrayImages
from pipeline.evaluation.features import extract_features, last_linear
from pipeline.models.classifier import Classifier

NORMALIZATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SHAPE = (3, 4, 4)


class ConvolutionHead(nn.Module):
    """A convolution that is called last makes the logits; a linear layer is registered after it."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.gate = nn.Conv2d(6, 5, 1), nn.Conv2d(3, 6, 1), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.gate(x.mean((2, 3)))
        return self.head(self.body(x).relu()).mean((2, 3))


def test_layer_of_a_linear_head(make_classifier, device):
    classifier = make_classifier(num_classes=4).freeze()
    assert last_linear(classifier, (3, 8, 8)) == "fc"


def test_layer_is_the_last_in_the_order_of_calls():
    assert last_linear(Classifier(ConvolutionHead(), NORMALIZATION, 5), SHAPE) == "head"


def test_network_without_such_a_layer_raises():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="no linear layer with 3 outputs"):
        last_linear(Classifier(network, NORMALIZATION, 3), SHAPE)


def test_features_give_the_logits_and_follow_the_indices(make_classifier, device):
    classifier = make_classifier(num_classes=4).freeze()
    pixels = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ArrayImages(pixels, torch.arange(7) % 4)
    features = extract_features(classifier, "fc", images, [[6, 0], [3]])
    assert features.labels.tolist() == [2, 0, 3]
    expected = classifier(pixels[[6, 0, 3]].to(device) / 255).cpu()
    torch.testing.assert_close(features.logits, expected, rtol=1e-4, atol=1e-4)
    fc = classifier.network.fc
    torch.testing.assert_close(
        features.values @ fc.weight.cpu().T + fc.bias.cpu(), features.logits, rtol=1e-4, atol=1e-4
    )
    assert not fc._forward_pre_hooks


def test_maps_are_averaged_over_their_positions():
    classifier = Classifier(ConvolutionHead(), NORMALIZATION, 5).eval()
    images = ArrayImages(torch.full((2, *SHAPE), 255, dtype=torch.uint8), torch.tensor([0, 1]))
    features = extract_features(classifier, "head", images, [[0, 1]])
    assert features.values.shape == (2, 6)
    torch.testing.assert_close(
        features.values, classifier.network.body(torch.ones(2, *SHAPE)).relu().mean((2, 3)).detach()
    )
