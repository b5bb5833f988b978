"""A student that starts from weights of its teacher."""

import pytest
import torch
from torch import nn

from cifar10.networks import build_network
from pipeline.models.inheritance import inherit_weights


def network(width: int, num_classes: int = 10, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(width)
    return build_network(name, in_channels=3, num_classes=num_classes, width=width).eval()


def test_a_network_of_the_same_size_is_copied():
    teacher, student = network(8), network(8, name="resnet8")
    nn.init.zeros_(student.conv1.weight)
    assert inherit_weights(student, teacher) == 1
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(student(x), teacher(x))


def test_a_narrower_network_gets_evenly_spaced_channels_and_the_outputs_of_its_classes():
    teacher, student = network(8), network(4, num_classes=3)
    assert inherit_weights(student, teacher, torch.tensor([7, 0, 4])) == 1
    assert torch.equal(student.conv1.weight, teacher.conv1.weight[::2])
    assert torch.equal(student.fc.weight, teacher.fc.weight[[7, 0, 4]][:, ::2])
    assert torch.equal(student.fc.bias, teacher.fc.bias[[7, 0, 4]])


def test_layers_without_counterpart_keep_their_weights():
    teacher, student = network(8), network(16)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    share = inherit_weights(student, teacher)
    assert 0 < share < 0.1  # the bias of the last layer, and scalars
    assert torch.equal(student.conv1.weight, before["conv1.weight"])
    assert torch.equal(student.fc.bias, teacher.fc.bias)


def test_a_network_without_counterparts_raises():
    with pytest.raises(ValueError, match=r"distill\.init: teacher, but no tensor .* \(the first is 0\.weight\)"):
        inherit_weights(nn.Sequential(nn.Conv2d(3, 4, 3)), network(8))
