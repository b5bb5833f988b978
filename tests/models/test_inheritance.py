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
    assert inherit_weights(student, teacher) > 0.999  # but for the numbers of batches
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(student(x), teacher(x))


def test_a_narrower_network_gets_evenly_spaced_channels_and_the_outputs_of_its_classes():
    teacher, student = network(8), network(4, num_classes=3)
    assert inherit_weights(student, teacher, torch.tensor([7, 0, 4])) > 0.99
    assert torch.equal(student.conv1.weight, teacher.conv1.weight[::2])
    assert torch.equal(student.fc.weight, teacher.fc.weight[[7, 0, 4]][:, ::2])
    assert torch.equal(student.fc.bias, teacher.fc.bias[[7, 0, 4]])


def test_a_shorter_network_gets_the_layers_that_it_has():
    teacher, student = network(8, name="resnet14"), network(8)
    inherit_weights(student, teacher)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_layers_without_counterpart_keep_their_weights():
    teacher, student = network(8), network(8)
    student.extra = nn.Linear(3, 3)
    before = student.extra.weight.clone()
    assert 0.9 < inherit_weights(student, teacher) < 1
    assert torch.equal(student.extra.weight, before)
    assert torch.equal(student.conv1.weight, teacher.conv1.weight)


def test_another_architecture_raises():
    with pytest.raises(ValueError, match=r"only [0-9]% of the student's values .* \(none has conv1\.weight\)"):
        inherit_weights(network(16), network(8))


def test_a_last_layer_without_the_classes_raises():
    teacher = nn.Sequential(nn.Linear(4, 10), nn.BatchNorm1d(10), nn.Linear(10, 3))
    with pytest.raises(ValueError, match="needs the outputs in the teacher's last layer, which is 2"):
        inherit_weights(teacher, teacher, torch.tensor([7, 0]))
