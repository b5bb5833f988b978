"""The training loop: what the networks see, learning rates, saved states, and exact resumption."""

import pickle
import signal
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import CUDA_GRAPHS, PLAIN
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pipeline.data.image_sets import ArrayImages
from pipeline.data.views import AugmentConfig
from pipeline.distillation import train as train_module
from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.distillation.losses import distillation_loss, label_loss
from pipeline.distillation.muon import orthogonalized
from pipeline.distillation.state import TrainState, build_optimizer, digest_line, read_state, write_state
from pipeline.distillation.task import LossFunction, Task, build_distillation_loss, build_label_loss
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import ConfigError
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import OnStep
from pipeline.runtime.schedules import learning_rates
from pipeline.runtime.threads import overlapped

STEPS = 15
CONFIG = TrainingConfig(steps=STEPS, batch_size=5, lr=0.05, log_every=1, **PLAIN)
SAVE_EACH_STEP = replace(CONFIG, save_every_s=0)


@pytest.fixture
def images(device) -> ArrayImages:
    """24 images (3, 8, 8) of four classes that differ in brightness."""
    labels = torch.arange(24) % 4
    noise = torch.randint(0, 40, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    return ArrayImages(pixels.to(device), labels.to(device))


@pytest.fixture
def train(images, tmp_path) -> Callable[..., None]:
    """Train a classifier, by default on the labels of `images`, with its state in a file of the test's folder."""

    def train(
        classifier: Classifier,
        *,
        config: TrainingConfig = CONFIG,
        loss_function: LossFunction | None = None,
        images: ArrayImages = images,
        path: Path = tmp_path / "s.pt",
        on_step: OnStep | None = None,
    ) -> None:
        task = Task(classifier, loss_function or build_label_loss(config), config, 0, "training")
        state = TrainState.open(classifier, config, path, {"run": "this"})
        train_module.train(state, task, images, DistributedContext(device=images.pixels.device), on_step)

    return train


@pytest.fixture
def save_in_foreground(monkeypatch) -> None:
    """Write each state before training continues; otherwise a state is left out while another is written."""
    monkeypatch.setattr(train_module, "overlapped", lambda: overlapped(enabled=False))


class Killed(Exception):
    """Raised in place of a kill."""


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_and_gradient_by_hand(device, temperature):
    student, teacher = np.random.default_rng(0).normal(scale=3, size=(2, 6, 5))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    leaf = torch.tensor(student, device=device, requires_grad=True)
    loss = distillation_loss(leaf, torch.tensor(teacher, device=device), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    np.testing.assert_allclose(leaf.grad.cpu(), temperature * (q - p) / 6, atol=1e-5)


def test_distillation_loss_is_zero_for_equal_and_for_shifted_logits(device):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(device)
    assert distillation_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits + 3, logits, 4.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(logits.flip(1), logits, 4.0).item() > 0.1


def test_label_loss_by_hand_with_soft_labels_and_smoothing(device):
    logits = torch.tensor([[0.7, 0.2, 0.1]], device=device).log()
    soft = torch.tensor([[0.5, 0.5, 0.0]], device=device)
    assert label_loss(logits, soft, 0.0).item() == pytest.approx(-(np.log(0.7) + np.log(0.2)) / 2, rel=1e-5)
    hard = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    smoothed = -(0.9 * np.log(0.7) + 0.1 * np.log([0.7, 0.2, 0.1]).mean())
    assert label_loss(logits, hard, 0.1).item() == pytest.approx(smoothed, rel=1e-5)


def test_teacher_and_student_see_the_same_view(device, make_classifier, train):
    teacher, student = make_classifier(0).freeze(), make_classifier(1)
    augment = AugmentConfig(crop_padding_px=2, flip=True, mixup_probability=0.5, cutmix_probability=0.5)
    config = DistillConfig(steps=4, batch_size=6, lr=0.01, augment=augment, **PLAIN)
    views: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, classifier in (("teacher", teacher), ("student", student)):
        classifier.register_forward_pre_hook(lambda _, inputs, name=name: views[name].append(inputs[0].clone()))
    train(student, config=config, loss_function=build_distillation_loss(teacher, config))
    assert len(views["teacher"]) == len(views["student"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(views["teacher"], views["student"], strict=True))
    assert student.training
    assert not teacher.training


def test_label_loss_is_added_with_its_weight(device, make_classifier):
    teacher = make_classifier(0).freeze()
    config = DistillConfig(steps=1, batch_size=6, lr=0.01, label_weight=2.0, label_smoothing=0.1)
    generator = torch.Generator().manual_seed(0)
    logits, view = (torch.randn(6, *shape, generator=generator).to(device) for shape in ((4,), (3, 8, 8)))
    targets = torch.eye(4, device=device)[[0, 1] * 3]
    expected = distillation_loss(logits, teacher(view), 4.0) + 2 * label_loss(logits, targets, 0.1)
    torch.testing.assert_close(build_distillation_loss(teacher, config)(logits, view, targets), expected)


def test_teacher_learns_labels_and_student_learns_without_them(make_classifier, images, train, tmp_path):
    teacher, student = make_classifier(0), make_classifier(1)
    train(teacher, config=TrainingConfig(steps=60, batch_size=12, lr=0.1, **PLAIN), path=tmp_path / "teacher.pt")
    teacher.freeze()
    pixels = images.pixels.float() / 255
    assert (teacher(pixels).argmax(1) == images.labels).float().mean() > 0.9
    config = DistillConfig(steps=80, batch_size=12, lr=0.1, **PLAIN)
    unlabeled = ArrayImages(images.pixels, torch.zeros_like(images.labels))
    train(student, config=config, images=unlabeled, loss_function=build_distillation_loss(teacher, config))
    assert (student.freeze()(pixels).argmax(1) == teacher(pixels).argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("kill_step", [1, 5, 7, 14])
@pytest.mark.usefixtures("save_in_foreground")
def test_resume_equals_uninterrupted_run(make_classifier, train, tmp_path, optimizer, kill_step):
    augment = AugmentConfig(crop_padding_px=2, flip=True, mixup_probability=0.5, cutmix_probability=0.3)
    config = replace(SAVE_EACH_STEP, optimizer=optimizer, augment=augment)

    def run(classifier: Classifier, name: str, losses: list[tuple[int, float]], kill_step: int | None = None) -> None:
        def on_step(step: int, figures: dict[str, float]) -> None:
            if step == kill_step:
                raise Killed
            losses.append((step, figures["loss"]))

        classifier.network.fc = nn.Sequential(nn.Dropout(0.5), classifier.network.fc)  # a layer that draws
        train(classifier, config=config, path=tmp_path / name, on_step=on_step)

    expected, expected_losses = make_classifier(0), []
    run(expected, "uninterrupted.pt", expected_losses)
    losses = []
    with pytest.raises(Killed):
        run(make_classifier(0), "killed.pt", losses, kill_step)
    resumed = make_classifier(9)  # the saved state replaces its weights
    run(resumed, "killed.pt", losses)
    assert losses == expected_losses
    assert [step for step, _ in losses] == list(range(STEPS))
    torch.testing.assert_close(dict(resumed.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


def test_rounds_train_their_steps_of_one_schedule(make_classifier, images, tmp_path):
    rates = []
    for steps in (range(0, 6), range(6, STEPS)):
        state = TrainState.open(make_classifier(0), CONFIG, tmp_path / f"{steps.start}.pt", {}, steps)
        task = Task(state.classifier, build_label_loss(CONFIG), CONFIG, 0, "training")
        context = DistributedContext(device=images.pixels.device)
        train_module.train(state, task, images, context, lambda step, figures: rates.append((step, figures["lr"])))
        assert state.step == state.end == steps.stop
    expected = learning_rates(CONFIG.schedule, CONFIG.lr, STEPS, CONFIG.warmup_fraction)
    assert rates == list(enumerate(expected))


def test_training_continues_while_a_state_is_written(make_classifier, train, monkeypatch):
    steps, written_steps, may_end = [], [], threading.Event()

    def write(path, content):
        assert may_end.wait(timeout=60)
        written_steps.append(content["step"])

    def on_step(step, figures):
        steps.append(step)
        if step == STEPS - 2:
            may_end.set()

    monkeypatch.setattr(train_module, "write_state", write)
    train(make_classifier(0), config=SAVE_EACH_STEP, on_step=on_step)
    assert steps == list(range(STEPS))
    assert written_steps[0] == 1, "the first state was copied before the second step changed it"
    assert len(written_steps) <= 3, "no state is saved while another one is written"


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_its_state_and_resumes_exactly(make_classifier, train, tmp_path, number):
    def interrupt(step, figures):
        if step == 4:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        train(make_classifier(0), config=replace(CONFIG, log_every=4), on_step=interrupt)
    assert read_state(tmp_path / "s.pt")["step"] == 6
    resumed, uninterrupted = make_classifier(0), make_classifier(0)
    train(resumed)
    train(uninterrupted, path=tmp_path / "other.pt")
    tensors = zip(resumed.state_dict().values(), uninterrupted.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in tensors)


@pytest.mark.usefixtures("_interruptible")
def test_state_of_an_interrupted_training_needs_space(make_classifier, train, monkeypatch):
    def write(path, content):
        raise OSError("the disk is full")

    def interrupt(step, figures):
        if step == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module, "write_state", write)
    with pytest.raises(OSError, match="the disk is full"):
        train(make_classifier(0), on_step=interrupt)


def test_full_disk_stops_the_training(make_classifier, train, monkeypatch):
    def write(path, content):
        raise OSError("the disk is full")

    monkeypatch.setattr(train_module, "write_state", write)
    with pytest.raises(OSError, match="the disk is full"):
        train(make_classifier(0), config=SAVE_EACH_STEP)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_batch_that_processes_cannot_share_raises(size):
    config = DistillConfig(steps=1, batch_size=5, lr=0.1)
    message = (
        f"distill.batch_size: 5 cannot be shared by {size} processes; use a multiple of {size}, at least {2 * size}"
    )
    with pytest.raises(ConfigError, match=message):
        config.require_even_shares(size)
    config.require_even_shares(1)


@pytest.mark.usefixtures("save_in_foreground")
def test_finished_training_is_not_repeated(make_classifier, train):
    steps = []
    for _ in range(2):
        train(make_classifier(0), config=SAVE_EACH_STEP, on_step=lambda step, figures: steps.append(step))
    assert steps == list(range(STEPS))


def test_no_state_is_saved_before_the_interval_has_passed(make_classifier, train, tmp_path):
    train(make_classifier(0))
    assert list(tmp_path.iterdir()) == []


def save_state(classifier: Classifier, path: Path, *, run: str = "this") -> bytes:
    """Save the state of a run at step 3; returns the bytes of the file."""
    state = TrainState.open(classifier, CONFIG, path, {"run": run})
    state.step = 3
    write_state(path, state.on_host())
    return path.read_bytes()


def test_state_of_another_configuration_raises_and_is_kept(make_classifier, train, tmp_path):
    path = tmp_path / "s.pt"
    data = save_state(make_classifier(0), path, run="another")
    message = r"s\.pt was made with another configuration \(run: another before, this now\)"
    with pytest.raises(ConfigError, match=message):
        train(make_classifier(0))
    assert path.read_bytes() == data


def flip(data: bytes, fraction: float) -> bytes:
    """The data with one bit flipped, at this fraction of its length."""
    position = int(fraction * len(data))
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("damage", [lambda data, at: data[: int(at * len(data))], flip], ids=["truncated", "flipped"])
@pytest.mark.parametrize("at", [0.0, 0.002, 0.3, 0.95])
def test_damaged_state_raises_and_is_kept(make_classifier, train, tmp_path, damage, at):
    path = tmp_path / "s.pt"
    damaged = damage(save_state(make_classifier(0), path), at)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"s\.pt is damaged: .*; remove it to train from the start"):
        train(make_classifier(0))
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("content", [[1], {"identity": "{}"}, {"identity": "{", "step": 1}, {"identity": 1, "step": 1}])
def test_another_content_than_a_state_is_refused(tmp_path, content):
    write_state(tmp_path / "s.pt", content)
    with pytest.raises(ValueError, match=r"s\.pt holds something else than a state; remove it to train from the start"):
        read_state(tmp_path / "s.pt")


def test_a_state_that_holds_code_is_refused(tmp_path):
    content = pickle.dumps(print, protocol=2)  # that of torch.save
    (tmp_path / "s.state").write_bytes(digest_line(content) + content)
    with pytest.raises(ValueError, match=r"s\.state holds something else than a state; remove it to train from"):
        read_state(tmp_path / "s.state")


@pytest.mark.parametrize("log_every", [1, 4, 100])
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.usefixtures("save_in_foreground")
def test_non_finite_loss_raises_with_its_step_and_keeps_the_saved_state(
    make_classifier, train, tmp_path, log_every, value
):
    num_calls = 0

    def loss_function(logits, view, targets):
        nonlocal num_calls
        num_calls += 1
        return F.cross_entropy(logits, targets) * (float(value) if num_calls == 7 else 1)

    config = replace(SAVE_EACH_STEP, log_every=log_every)
    with pytest.raises(
        FloatingPointError, match=f"^teacher_training: the loss is {value} at step 6; lower teacher_training.lr$"
    ):
        train(make_classifier(0), config=config, loss_function=loss_function)
    state = read_state(tmp_path / "s.pt")
    assert state["step"] == 1 + 5 // log_every * log_every  # states are saved on logging steps
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())


def test_logging_steps_are_every_nth_and_the_last(make_classifier, train):
    steps = []
    train(
        make_classifier(0),
        config=replace(CONFIG, log_every=4),
        on_step=lambda step, figures: steps.append(step),
    )
    assert steps == [0, 4, 8, 12, 14]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_update_has_the_learning_rate_of_its_step(make_classifier, train, schedule):
    config = replace(CONFIG, schedule=schedule, warmup_fraction=0.2, momentum=0.0)
    classifier = make_classifier(0)
    bias = classifier.network.fc.bias
    values, rates = [bias[0].item()], []

    def on_step(step, figures):
        values.append(bias[0].item())
        rates.append(figures["lr"])

    def loss_function(logits, view, targets):
        return logits[:, 0].mean()  # its gradient for the first bias is 1

    train(classifier, config=config, loss_function=loss_function, on_step=on_step)
    expected = learning_rates(schedule, config.lr, STEPS, 0.2)
    assert rates == list(expected)
    np.testing.assert_allclose(-np.diff(values), expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_excludes_biases_and_batch_norm(make_classifier, train, optimizer):
    config = replace(CONFIG, optimizer=optimizer, weight_decay=0.1, schedule="constant", warmup_fraction=0.0)
    config = replace(config, momentum=0.0 if optimizer == "sgd" else None)
    classifier = make_classifier(0)
    torch.nn.init.ones_(classifier.network.fc.bias)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    train(classifier, config=config, loss_function=lambda logits, *_: logits.sum() * 0)
    for name, parameter in classifier.named_parameters():
        factor = (1 - config.lr * 0.1) ** STEPS if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter, before[name] * factor)


def test_sgd_with_nesterov_momentum_by_hand():
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimizer = build_optimizer(network, replace(CONFIG, lr=0.1, momentum=0.9, weight_decay=0.0))
    expected, velocity = 1.0, 0.0
    for _ in range(4):
        network.weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
        velocity = 0.9 * velocity + 2.0
        expected -= 0.1 * (2.0 + 0.9 * velocity)
        assert network.weight.item() == pytest.approx(expected, rel=1e-5)


def muon_steps(network: nn.Module, num_steps: int = 3) -> list[list[Tensor]]:
    """The gradients of so many steps of Muon at a rate of 0.1, one list for each parameter."""
    generator = torch.Generator().manual_seed(0)
    optimizer = build_optimizer(network, replace(CONFIG, optimizer="muon", lr=0.1, weight_decay=0.0))
    parameters = list(network.parameters())
    gradients = [[torch.randn(p.shape, generator=generator) for _ in range(num_steps)] for p in parameters]
    for of_step in zip(*gradients, strict=True):
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return gradients


@pytest.mark.parametrize("channels", [4, 40])
def test_muon_updates_filters_by_orthogonal_matrices_of_the_size_of_adamw(channels):
    network = nn.Conv2d(3, channels, 3, bias=False)
    expected, momentum = network.weight.detach().clone(), torch.zeros(channels, 27)
    (gradients,) = muon_steps(network)
    for gradient in gradients:
        momentum = 0.9 * momentum + gradient.flatten(1)
        (update,) = orthogonalized((gradient.flatten(1) + 0.9 * momentum)[None])
        expected -= 0.1 * 0.2 * max(channels, 27) ** 0.5 * update.view(expected.shape)
    torch.testing.assert_close(network.weight.detach(), expected)


def test_muon_updates_biases_and_depthwise_filters_by_adam():
    network = nn.Conv2d(4, 4, 3, groups=4)
    other = deepcopy(network)
    gradients = muon_steps(network)
    adam = torch.optim.Adam(other.parameters(), lr=0.1)
    for of_step in zip(*gradients, strict=True):
        other.weight.grad, other.bias.grad = of_step
        adam.step()
    torch.testing.assert_close(network.state_dict(), other.state_dict())


@pytest.mark.parametrize("groups", [1, 4])
def test_muon_does_not_depend_on_the_layout_in_memory(groups):
    network = nn.Conv2d(4, 4, 3, groups=groups)
    other = deepcopy(network).to(memory_format=torch.channels_last)
    muon_steps(network)
    muon_steps(other)
    torch.testing.assert_close(network.state_dict(), other.state_dict())


def test_muon_leaves_parameters_without_a_gradient_and_those_of_gradient_zero():
    network = nn.Linear(3, 2)
    before = deepcopy(network.state_dict())
    network.weight.grad = torch.zeros(2, 3)
    build_optimizer(network, replace(CONFIG, optimizer="muon", weight_decay=0.0)).step()
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_muon_updates_matrices_of_one_shape_each_by_itself():
    layers = [nn.Linear(6, 5, bias=False) for _ in range(3)] + [nn.Linear(3, 9, bias=False)]
    network, alone = nn.ModuleList(layers), deepcopy(layers)
    for gradients, layer in zip(muon_steps(network, 2), alone, strict=True):
        optimizer = build_optimizer(layer, replace(CONFIG, optimizer="muon", lr=0.1, weight_decay=0.0))
        for gradient in gradients:
            layer.weight.grad = gradient
            optimizer.step()
    torch.testing.assert_close([layer.weight for layer in layers], [layer.weight for layer in alone])


@pytest.mark.parametrize("shape", [(3, 6, 20), (1, 20, 6), (2, 5, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.max() < 1.3
    assert values.min() > 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # raised when torch prepares its first graph
@pytest.mark.parametrize("cuda_graphs", [False, CUDA_GRAPHS])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_compiled_training_ends_like_eager_training(make_classifier, train, tmp_path, compiler, optimizer, cuda_graphs):
    teacher, config = make_classifier(0).freeze(), DistillConfig(steps=5, batch_size=6, lr=0.02, optimizer=optimizer)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, values in losses.items():
        settings = {"precision": "float32", "compile": compiled, "cuda_graphs": compiled and cuda_graphs}
        config = replace(config, log_every=1, **settings)
        train(
            make_classifier(1),
            config=config,
            loss_function=build_distillation_loss(teacher, config),
            path=tmp_path / f"{compiled}.state",
            on_step=lambda _, figures, values=values: values.append(figures["loss"]),
        )
    assert not counters["inductor"]["cudagraph_skips"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_epoch_has_every_image_once_in_its_own_order(make_classifier, images, train):
    sums: list[float] = []

    def loss_function(logits, view, targets):
        sums.extend(view.sum((1, 2, 3)).tolist())
        return F.cross_entropy(logits, targets)

    train(make_classifier(0), loss_function=loss_function)
    epochs = [sums[i : i + 24] for i in range(0, 72, 24)]
    expected = sorted((images.pixels.float() / 255).sum((1, 2, 3)).tolist())
    assert all(sorted(epoch) == pytest.approx(expected) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_step_has_its_own_views(make_classifier, images, train):
    repeated = ArrayImages(images.pixels[:1].repeat(24, 1, 1, 1), images.labels[:1].repeat(24))
    config, views = replace(CONFIG, batch_size=24, steps=4, augment=AugmentConfig(crop_padding_px=2)), []

    def loss_function(logits, view, targets):
        views.append(view)
        return F.cross_entropy(logits, targets)

    train(make_classifier(0), config=config, images=repeated, loss_function=loss_function)
    assert len(views) == 4
    assert not any(torch.equal(views[i], views[j]) for i in range(4) for j in range(i))


def test_bfloat16_trains_float32_weights(make_classifier, train):
    classifier, losses, dtypes = make_classifier(0), [], set()

    def loss_function(logits, view, targets):
        dtypes.add(logits.dtype)
        return label_loss(logits, targets, 0.0)

    train(
        classifier,
        config=replace(CONFIG, precision="bfloat16", steps=50),
        loss_function=loss_function,
        on_step=lambda step, figures: losses.append(figures["loss"]),
    )
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_training_does_not_change_the_global_generator(make_classifier, train):
    before = torch.get_rng_state()
    train(make_classifier(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: 0 must be at least 1"),
        ({"batch_size": 1}, "batch_size: 1 must be at least 2"),
        ({"lr": 0.0}, r"lr: 0\.0 must be positive"),
        ({"weight_decay": -0.1}, r"weight_decay: -0\.1 must be at least 0"),
        ({"momentum": 0.9, "optimizer": "adamw"}, r"momentum: 0\.9 is SGD's, not that of adamw; leave it out"),
        ({"momentum": 0.9, "optimizer": "muon"}, r"momentum: 0\.9 is SGD's, not that of muon; leave it out"),
        ({"memory_gib": -1.0}, r"memory_gib: -1\.0 must be at least 0"),
        ({"momentum": 1.0}, r"momentum: 1\.0 must be in \[0, 1\)"),
        ({"temperature": 0.0}, r"temperature: 0\.0 must be positive"),
        ({"label_weight": -1.0}, r"label_weight: -1\.0 must be at least 0"),
        ({"feature_weight": -1.0}, r"feature_weight: -1\.0 must be at least 0"),
    ],
)
def test_invalid_training_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**{"steps": 1, "batch_size": 4, "lr": 0.1} | values)
