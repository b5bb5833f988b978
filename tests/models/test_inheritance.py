"""A student that starts from weights of its teacher."""

import pytest
import torch
from torch import nn

from cifar10.networks import build_network
from pipeline.models.inheritance import inherit_weights

SHAPE = (3, 16, 16)


def network(width: int, num_classes: int = 10, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(width)
    return build_network(name, in_channels=3, num_classes=num_classes, width=width).eval()


class Depthwise(nn.Sequential):
    """Pointwise, depthwise and pointwise convolutions, each with BatchNorm."""

    def __init__(self, width: int) -> None:
        shapes = [(3, width, 1), (width, width, width), (width, 2 * width, 1)]
        layers = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU6())
            for i, o, groups in shapes
        ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5))


class ScrambledChannels(nn.Module):
    """A network that raises while its channels are followed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.std() == 0:
            raise RuntimeError("the image is flat")
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_network_of_the_same_size_is_copied():
    teacher, student = network(8), network(8)
    nn.init.zeros_(student.conv1.weight)
    assert inherit_weights(student, teacher, SHAPE) > 0.999  # but for the numbers of batches
    x = torch.randn(2, *SHAPE)
    assert torch.equal(student(x), teacher(x))


def test_the_teacher_stays_as_it_is():
    teacher = network(8).requires_grad_(False).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    inherit_weights(network(4), teacher, SHAPE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [1, 4, 6, 7]])
def test_a_narrower_network_is_the_teacher_without_the_channels_that_nothing_reads(kept):
    torch.manual_seed(0)
    teacher, student = Depthwise(8).eval(), Depthwise(4).eval()
    others = [channel for channel in range(8) if channel not in kept]
    teacher[2][0].weight.data[:, others] = 0
    last = [*kept, *(8 + channel for channel in kept)]
    teacher[5].weight.data[:, [channel for channel in range(16) if channel not in last]] = 0
    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.uniform_(0.5, 1.5)
    assert inherit_weights(student, teacher, SHAPE) > 0.95
    assert torch.equal(student[1][0].weight, teacher[1][0].weight[kept])
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(student(x), teacher(x))


def test_a_residual_stream_keeps_the_same_channels_in_all_its_layers():
    teacher, student, kept = network(8), network(4), [1, 4, 6, 7]
    for reader in (teacher.layer1[0].conv1, teacher.layer2[0].conv1, teacher.layer2[0].downsample[0]):
        reader.weight.data[:, [0, 2, 3, 5]] = 0
    assert inherit_weights(student, teacher, SHAPE) > 0.99
    assert torch.equal(student.conv1.weight, teacher.conv1.weight[kept])
    assert torch.equal(student.layer1[0].bn2.weight, teacher.layer1[0].bn2.weight[kept])
    read = [filters[kept] for filters in teacher.layer1[0].conv1.weight]
    assert all(any(torch.equal(own, other) for other in read) for own in student.layer1[0].conv1.weight)


def test_the_outputs_are_those_of_the_classes_in_their_order():
    teacher, student = network(8), network(8, num_classes=3)
    inherit_weights(student, teacher, SHAPE, torch.tensor([7, 0, 4]))
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(student(x), teacher(x)[:, [7, 0, 4]])


class LastLayerFirst(nn.Module):
    """A network whose layers are registered in another order than they are used."""

    def __init__(self, num_classes: int, num_extra: int) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(8, num_classes), nn.Conv2d(3, 8, 3)
        self.extra = nn.Linear(8, num_extra)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("num_extra", [3, 10, 20])
def test_outputs_of_another_layer_than_the_last_are_refused(num_extra):
    teacher, student = LastLayerFirst(10, num_extra), LastLayerFirst(3, 3)
    with pytest.raises(ValueError, match="needs the outputs in the teacher's last layer, which is extra; use init: ra"):
        inherit_weights(student, teacher, SHAPE, torch.tensor([7, 0, 4]))


def test_channels_that_only_other_classes_read_are_left_out():
    teacher, student = network(8), network(4, num_classes=2)
    teacher.fc.weight.data[:] = 0
    teacher.fc.weight.data[[7, 0], 16:] = 1.0
    teacher.fc.weight.data[3, :16] = 9.0
    inherit_weights(student, teacher, SHAPE, torch.tensor([7, 0]))
    assert torch.equal(student.fc.weight, torch.ones(2, 16))


def test_a_shorter_network_gets_the_layers_that_it_has():
    teacher, student = network(8, name="resnet14"), network(8)
    inherit_weights(student, teacher, SHAPE)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_a_shorter_and_narrower_network_gets_all_its_layers():
    assert inherit_weights(network(4), network(8, name="resnet14"), SHAPE) > 0.99


def test_layers_without_counterpart_keep_their_weights():
    teacher, student = network(8), network(8)
    student.extra = nn.Linear(3, 3)
    before = student.extra.weight.clone()
    assert 0.9 < inherit_weights(student, teacher, SHAPE) < 1
    assert torch.equal(student.extra.weight, before)
    assert torch.equal(student.conv1.weight, teacher.conv1.weight)


def test_another_architecture_raises():
    with pytest.raises(ValueError, match=r"only [0-9]% of the student's values .* \(none has conv1\.weight\)"):
        inherit_weights(network(16), network(8), SHAPE)


def test_a_network_whose_channels_cannot_be_followed_raises():
    with pytest.raises(ValueError, match=r"cannot follow the channels of the teacher \(the image is flat\)"):
        inherit_weights(ScrambledChannels(4), ScrambledChannels(8), SHAPE)
