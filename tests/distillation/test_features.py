"""Feature matching: which layers are compared, the loss and its gradient, and what it does for a student."""

from pathlib import Path

import pytest
import torch
import torchvision
from tiny_run import CUDA_GRAPHS, PLAIN
from torch import Tensor, nn

from cifar10.resnet import ResNet
from pipeline.data.image_sets import ArrayImages
from pipeline.distillation.config import DistillConfig
from pipeline.distillation.features import FeatureMatching, feature_loss, last_layers, open_feature_matching
from pipeline.distillation.losses import distillation_loss
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import open_distillation
from pipeline.distillation.train import train
from pipeline.models.classifier import Classifier
from pipeline.models.config import identity_normalization
from pipeline.runtime.distributed import DistributedContext

SHAPE = (3, 16, 16)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_resnet(depth: int, width: int, seed: int, device: torch.device) -> Classifier:
    """A ResNet of three stages, 16, 8 and 4 pixels wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet([depth] * 3, width=width, shortcut="A", num_classes=4)
    return Classifier(network, identity_normalization(3), 4).to(device)


class Plain(nn.Module):
    """Layers without blocks, one ReLU for all of them, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.relu, self.pool, self.fc = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.first(x)))
        return self.fc(self.relu(self.second(x)).mean((2, 3)))


def test_a_resolution_is_finished_by_its_stage(device):
    expected = {(16, 16): "layer1", (8, 8): "layer2", (4, 4): "layer3"}
    classifier = make_resnet(2, 8, 0, device)
    assert last_layers(classifier, SHAPE) == expected
    assert classifier.training and not classifier.network._forward_hooks
    assert last_layers(classifier.freeze(), SHAPE) == expected


def test_a_layer_of_the_next_stage_does_not_finish_a_resolution(device):
    classifier = Classifier(torchvision.models.resnet50(num_classes=4), identity_normalization(3), 4).to(device)
    stages = {(32, 32): "relu", (16, 16): "layer1", (8, 8): "layer2", (4, 4): "layer3", (2, 2): "layer4"}
    assert last_layers(classifier, (3, 64, 64)) == stages


def test_modules_that_are_called_twice_finish_no_resolution(device):
    classifier = Classifier(Plain(), identity_normalization(3), 4).to(device)
    assert last_layers(classifier, SHAPE) == {(16, 16): "first", (8, 8): "second"}


def test_feature_loss_of_equal_channels_is_the_relative_squared_error(device):
    student, teacher = random(4, 3, 5, 5).to(device), random(4, 3, 5, 5, seed=1).to(device)
    expected = (student - teacher).square().sum() / teacher.square().sum()
    torch.testing.assert_close(feature_loss(student, teacher), expected)
    assert feature_loss(teacher, teacher).item() == 0
    assert torch.isfinite(feature_loss(student, torch.zeros_like(teacher)))


@pytest.mark.parametrize(("channels", "others"), [(3, 7), (7, 3)])
def test_other_channels_are_combined_as_least_squares_do(device, channels, others):
    student, teacher = random(8, channels, 5, 5).to(device), random(8, others, 5, 5, seed=1).to(device)
    student.requires_grad_()
    inputs, outputs = (x.transpose(0, 1).flatten(1).T.double().cpu() for x in (student, teacher))
    residual = outputs - inputs @ torch.linalg.lstsq(inputs, outputs).solution
    expected = residual.square().sum() / outputs.square().sum()
    loss = feature_loss(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    # The gradient of the whole expression, through the combination, is the same.
    (gradient,) = torch.autograd.grad(loss, student)
    (through,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, through, rtol=0.02, atol=1e-5)


def test_mixtures_of_the_students_channels_are_matched_without_error(device):
    student = random(8, 4, 5, 5).to(device)
    teacher = torch.einsum("dc,nchw->ndhw", random(9, 4, seed=1).to(device), student)
    assert feature_loss(student, teacher).item() < 1e-5


def test_hooks_are_removed_also_after_an_error(device):
    student, teacher = make_resnet(1, 8, 0, device), make_resnet(2, 8, 1, device).freeze()
    with pytest.raises(KeyError), open_feature_matching(student, teacher, SHAPE):
        raise KeyError
    assert not any(m._forward_hooks for c in (student, teacher) for m in c.modules())


def test_networks_without_a_common_resolution_are_an_error(device):
    student = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), identity_normalization(3), 4).to(device)
    teacher = make_resnet(1, 8, 1, device).freeze()
    message = r"distill\.feature_weight: the student has maps of no pixels, the teacher of 16x16, 8x8, 4x4"
    with pytest.raises(ValueError, match=message), open_feature_matching(student, teacher, SHAPE):
        pass


def make_losses(device: torch.device, folder: Path, student: Classifier, teacher: Classifier, **keys) -> list[float]:
    """The losses of a short training; `keys` are those of `distill`."""
    pixels = torch.randint(0, 256, (32, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = ArrayImages(pixels.to(device), torch.zeros(32, device=device))
    config = DistillConfig(**{"steps": 12, "batch_size": 16, "lr": 0.01, "log_every": 1, **PLAIN, **keys})
    losses: list[float] = []
    with open_distillation(student, teacher, config, SHAPE, 0) as task:
        state = TrainState.open(student, config, folder / "s.state", {})
        train(
            state, task, images, DistributedContext(device=device), lambda step, figures: losses.append(figures["loss"])
        )
    return losses


def feature_error(student: Classifier, teacher: Classifier, view: Tensor) -> float:
    with open_feature_matching(student, teacher, SHAPE) as matching, torch.no_grad():
        student(view), teacher(view)
        return matching.loss().item()


def test_the_loss_of_a_step_is_that_of_logits_and_weighted_features(device):
    student, teacher = make_resnet(1, 8, 0, device), make_resnet(2, 8, 1, device).freeze()
    view, targets = torch.rand(8, *SHAPE, device=device), torch.eye(4, device=device)[[0, 1] * 4]
    config = DistillConfig(steps=1, batch_size=8, lr=0.1, feature_weight=3.0, **PLAIN)
    with open_distillation(student, teacher, config, SHAPE, 0) as task:
        losses = [task(view, targets).item() for _ in range(2)]
    plain = distillation_loss(student(view), teacher(view), config.temperature).item()
    assert losses == pytest.approx([plain + 3 * feature_error(student, teacher, view)] * 2, rel=1e-4)
    assert not any(m._forward_hooks for c in (student, teacher) for m in c.modules())


@pytest.mark.parametrize("width", [8, 6])
def test_a_student_comes_closer_to_the_teachers_maps(device, tmp_path, width):
    teacher, view = make_resnet(1, 8, 1, device).freeze(), torch.rand(16, *SHAPE, device=device)
    errors = {}
    for weight in (0.0, 100.0):
        student = make_resnet(1, width, 0, device)
        make_losses(device, tmp_path / str(weight), student, teacher, feature_weight=weight, steps=40, optimizer="muon")
        errors[weight] = feature_error(student.eval(), teacher, view)
    assert errors[100.0] < 0.7 * errors[0.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("cuda_graphs", [False, CUDA_GRAPHS])
def test_compiled_steps_have_the_losses_of_eager_ones(device, tmp_path, compiler, width, cuda_graphs):
    losses = []
    for compiled in (False, True):
        networks = make_resnet(1, width, 0, device), make_resnet(1, 8, 1, device).freeze()
        settings = {"precision": "float32", "compile": compiled, "cuda_graphs": compiled and cuda_graphs}
        losses.append(make_losses(device, tmp_path / str(compiled), *networks, feature_weight=3.0, steps=5, **settings))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_maps_are_forgotten_after_each_step(device):
    student, teacher = make_resnet(1, 8, 0, device), make_resnet(1, 8, 1, device).freeze()
    with open_feature_matching(student, teacher, SHAPE) as matching:
        assert isinstance(matching, FeatureMatching)
        view = torch.rand(8, *SHAPE, device=device)
        student(view), teacher(view)
        matching.loss()
        with pytest.raises(KeyError):
            matching.loss()
