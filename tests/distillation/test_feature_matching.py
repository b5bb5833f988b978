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
from pipeline.distillation.feature_matching import feature_loss, find_stages, matched_stages, open_feature_matching
from pipeline.distillation.losses import distillation_loss
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import open_distillation
from pipeline.distillation.train import train
from pipeline.models.classifier import Classifier
from pipeline.models.config import identity_normalization
from pipeline.runtime.distributed import DistributedContext

SHAPE = (3, 16, 16)
VIEWS = (16, *SHAPE)


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


def places(classifier: Classifier, shape: tuple[int, int, int] = SHAPE) -> dict[tuple[int, int], str]:
    return {size: stage.name for size, stage in find_stages(classifier, shape).items()}


def test_maps_are_those_of_stages(device):
    expected = {(16, 16): "the input of layer2", (8, 8): "the input of layer3", (4, 4): "the output of layer3"}
    classifier = make_resnet(2, 8, 0, device)
    assert places(classifier) == expected
    assert [stage.shape[0] for stage in find_stages(classifier, SHAPE).values()] == [8, 16, 32]
    assert classifier.training and not any(m._forward_hooks for m in classifier.modules())
    frozen = classifier.freeze()
    assert places(frozen) == expected
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())


RESNET = ["input of maxpool", *(f"input of {layer}" for layer in ("layer2", "layer3", "layer4", "avgpool"))]
STAGES = {
    "resnet50": RESNET,  # the first layers of a stage of bottlenecks have the resolution of the stage before
    "mobilenet_v2": [*(f"input of features.{i}" for i in (2, 4, 7, 14)), "output of features"],
    # Squeeze-and-excitation averages maps within a block.
    "mobilenet_v3_small": [*(f"input of features.{i}" for i in (1, 2, 4, 9)), "input of avgpool"],
    "densenet121": [
        "input of features.pool0",
        *(f"input of features.transition{i}" for i in (1, 2, 3)),
        "output of features",
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_networks_of_torchvision(device, name):
    classifier = Classifier(torchvision.models.get_model(name, num_classes=4), identity_normalization(3), 4).to(device)
    stages = places(classifier, (3, 64, 64))
    assert list(stages.values()) == [f"the {layer}" for layer in STAGES[name]]
    assert list(stages) == [(64 >> i, 64 >> i) for i in range(1, 6)]


def test_layers_that_are_called_twice_make_no_map(device):
    classifier = Classifier(Plain(), identity_normalization(3), 4).to(device)
    assert places(classifier) == {(16, 16): "the input of pool", (8, 8): "the output of second"}


def test_an_image_that_the_network_normalizes_or_enlarges_is_no_map(device):
    network = nn.Sequential(
        nn.Upsample(scale_factor=2), nn.BatchNorm2d(3, affine=False), make_resnet(1, 8, 0, device).network
    )
    stages = places(Classifier(network, identity_normalization(3), 4).to(device))
    assert stages == {
        (32, 32): "the input of 2.layer2",
        (16, 16): "the input of 2.layer3",
        (8, 8): "the output of 2.layer3",
    }


class Tokens(nn.Module):
    """Patches whose heads and windows have four dimensions, too."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.heads, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        windows = self.heads(x.reshape(4 * len(x), 2, 2, 8)[..., :4])
        return self.fc(x.mean(1)) + windows.mean()


def test_windows_are_no_images(device):
    classifier = Classifier(Tokens(), identity_normalization(3), 4).to(device)
    assert places(classifier) == {(4, 4): "the output of patches"}


def test_small_maps_with_other_channels_are_left_out(device):
    """The last map has 16 values of each of 24 channels for an image, the first 256 of 6."""
    student, teacher = make_resnet(1, 6, 0, device), make_resnet(1, 8, 1, device).freeze()
    compared = {n: [s.shape for s, _ in matched_stages(student, teacher, (n, *SHAPE))] for n in (1, 2, 6)}
    assert compared == {
        1: [(6, 16, 16), (12, 8, 8)],
        2: [(6, 16, 16), (12, 8, 8)],
        6: [(6, 16, 16), (12, 8, 8), (24, 4, 4)],
    }
    same = make_resnet(1, 8, 0, device)
    assert len(matched_stages(same, teacher, (1, *SHAPE))) == 3


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


def test_dead_and_equal_channels_of_the_student_do_no_harm(device):
    student, teacher = random(8, 4, 5, 5).to(device), random(8, 6, 5, 5, seed=1).to(device)
    student[:, 1], student[:, 2] = 0, student[:, 3]
    alone = feature_loss(student[:, [0, 3]].clone(), teacher).item()
    assert feature_loss(student, teacher).item() == pytest.approx(alone, rel=1e-3)
    assert feature_loss(torch.zeros_like(student), teacher).item() == pytest.approx(1)


def test_mixtures_of_the_students_channels_are_matched_without_error(device):
    student = random(8, 4, 5, 5).to(device)
    teacher = torch.einsum("dc,nchw->ndhw", random(9, 4, seed=1).to(device), student)
    assert feature_loss(student, teacher).item() < 1e-5


def test_hooks_are_removed_also_after_an_error(device):
    student, teacher = make_resnet(1, 8, 0, device), make_resnet(2, 8, 1, device).freeze()
    with pytest.raises(KeyError), open_feature_matching(student, teacher, VIEWS):
        raise KeyError
    assert not any(m._forward_hooks for c in (student, teacher) for m in c.modules())


def test_networks_without_a_common_resolution_are_an_error(device):
    student = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), identity_normalization(3), 4).to(device)
    teacher = make_resnet(1, 8, 1, device).freeze()
    message = r"distill\.feature_weight: the student has maps of no pixels, the teacher of 16x16, 8x8, 4x4"
    with pytest.raises(ValueError, match=message), open_feature_matching(student, teacher, VIEWS):
        pass


def test_common_maps_that_are_too_small_are_an_error(device):
    student, teacher = make_resnet(1, 128, 0, device), make_resnet(1, 8, 1, device).freeze()
    message = r"1 images have too few pixels in maps of 16x16, 8x8, 4x4 .*raise distill\.batch_size"
    with pytest.raises(ValueError, match=message):
        matched_stages(student, teacher, (1, *SHAPE))


def make_losses(device: torch.device, folder: Path, student: Classifier, teacher: Classifier, **keys) -> list[float]:
    """The losses of a short training; `keys` are those of `distill`."""
    pixels = torch.randint(0, 256, (32, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = ArrayImages(pixels.to(device), torch.zeros(32, device=device))
    config = DistillConfig(**{"steps": 12, "batch_size": 16, "lr": 0.01, "log_every": 1, **PLAIN, **keys})
    losses: list[float] = []
    with open_distillation(student, teacher, config, VIEWS, 0) as task:
        state = TrainState.open(student, config, folder / "s.state", {})
        train(
            state, task, images, DistributedContext(device=device), lambda step, figures: losses.append(figures["loss"])
        )
    return losses


def stages_of(classifier: Classifier, view: Tensor) -> list[Tensor]:
    """The maps after each of the three stages."""
    x, network = classifier.normalize(view), classifier.network
    x, maps = torch.relu(network.bn1(network.conv1(x))), []
    for i in range(1, 4):
        x = network.get_submodule(f"layer{i}")(x)
        maps.append(x)
    return maps


def feature_error(student: Classifier, teacher: Classifier, view: Tensor) -> float:
    with open_feature_matching(student, teacher, VIEWS) as matching, torch.no_grad():
        student(view), teacher(view)
        return matching.loss().item()


def test_the_loss_of_a_step_is_that_of_logits_and_weighted_features(device):
    student, teacher = make_resnet(1, 8, 0, device), make_resnet(2, 8, 1, device).freeze()
    view, targets = torch.rand(8, *SHAPE, device=device), torch.eye(4, device=device)[[0, 1] * 4]
    config = DistillConfig(steps=1, batch_size=8, lr=0.1, feature_weight=3.0, **PLAIN)
    with open_distillation(student, teacher, config, VIEWS, 0) as task:
        losses = [task(view, targets).item() for _ in range(2)]
    plain = distillation_loss(student(view), teacher(view), config.temperature).item()
    by_hand = [
        feature_loss(a, b).item() for a, b in zip(stages_of(student, view), stages_of(teacher, view), strict=True)
    ]
    assert losses == pytest.approx([plain + 3 * sum(by_hand) / 3] * 2, rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for c in (student, teacher) for m in c.modules())


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
    with open_feature_matching(student, teacher, VIEWS) as matching:
        view = torch.rand(8, *SHAPE, device=device)
        student(view), teacher(view)
        matching.loss()
        student(view)
        message = (
            r"distill\.feature_weight: a pass left out the input of layer2 of the student or the input of layer2 of"
        )
        with pytest.raises(ValueError, match=message):
            matching.loss()
