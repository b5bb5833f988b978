"""Training and distillation: losses by hand, learning rates, and a resume that leaves no trace."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import PLAIN
from torch import Tensor, nn

from pipeline.data.image_sets import ArrayImages
from pipeline.data.views import AugmentConfig
from pipeline.distillation import train as train_module
from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.distillation.losses import distillation_loss, label_loss
from pipeline.distillation.state import TrainState, build_optimizer
from pipeline.distillation.task import Task, build_distillation_loss, build_label_loss
from pipeline.distillation.train import train as train_state
from pipeline.runtime.config import ConfigError
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.schedules import learning_rates
from pipeline.runtime.threads import overlapped

STEPS = 15
CONFIG = TrainingConfig(steps=STEPS, batch_size=5, lr=0.05, log_every=1, **PLAIN)


@pytest.fixture
def images(device) -> ArrayImages:
    """24 images (3, 8, 8) of four classes that differ in brightness."""
    labels = torch.arange(24) % 4
    noise = torch.randint(0, 40, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 60 * labels[:, None, None, None]).to(torch.uint8)
    return ArrayImages(pixels.to(device), labels.to(device))


def train(classifier, images, num_classes, loss_function, config, seed, purpose, path, run="f", on_step=None) -> None:
    task = Task(classifier, loss_function, config, seed, purpose)
    state = TrainState.open(classifier, config, path, {"run": run})
    train_state(state, task, images, DistributedContext(device=images.pixels.device), on_step)


def logged_steps(classifier, images, config, path) -> list[int]:
    """The steps that a training on labels reports."""
    steps: list[int] = []
    train(
        classifier, images, 4, build_label_loss(config), config, 0, "t", path, "f", lambda step, _: steps.append(step)
    )
    return steps


class Stop(Exception):
    """A run that is killed."""


@pytest.fixture
def saved_at_once(monkeypatch) -> None:
    """States are written before training goes on; else one is left out while the one before is written."""
    monkeypatch.setattr(train_module, "overlapped", lambda: overlapped(enabled=False))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_and_its_gradient_by_hand(device, temperature):
    student, teacher = np.random.default_rng(0).normal(scale=3, size=(2, 6, 5))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    leaf = torch.tensor(student, device=device, requires_grad=True)
    loss = distillation_loss(leaf, torch.tensor(teacher, device=device), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    np.testing.assert_allclose(leaf.grad.cpu(), temperature * (q - p) / 6, atol=1e-5)


def test_distillation_loss_is_zero_at_equal_logits_and_blind_to_a_shift(device):
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


def test_the_teacher_sees_the_view_that_the_student_sees_and_labels_are_added(
    device, make_classifier, images, tmp_path
):
    teacher, student = make_classifier(0).freeze(), make_classifier(1)
    config = DistillConfig(
        steps=4,
        batch_size=6,
        lr=0.01,
        label_weight=2.0,
        **PLAIN,
        label_smoothing=0.1,
        augment=AugmentConfig(crop_padding_px=2, flip=True, mixup_probability=0.5, cutmix_probability=0.5),
    )
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, classifier in (("teacher", teacher), ("student", student)):
        classifier.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].clone()))
    loss_function = build_distillation_loss(teacher, config)
    train(student, images, 4, loss_function, config, 0, "distill", tmp_path / "state.pt", "f")
    assert len(seen["teacher"]) == len(seen["student"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen["teacher"], seen["student"], strict=True))
    assert student.training
    assert not teacher.training
    logits, view, targets = torch.randn(6, 4).to(device), seen["teacher"][0], torch.eye(4, device=device)[[0, 1] * 3]
    expected = distillation_loss(logits, teacher(view), 4.0) + 2 * label_loss(logits, targets, 0.1)
    torch.testing.assert_close(loss_function(logits, view, targets), expected)


def test_a_teacher_learns_and_a_student_learns_from_it_without_labels(make_classifier, images, tmp_path):
    config = TrainingConfig(steps=60, batch_size=12, lr=0.1, **PLAIN)
    teacher = make_classifier(0)
    train(teacher, images, 4, build_label_loss(config), config, 0, "teacher", tmp_path / "teacher.pt", "f")
    teacher.freeze()
    pixels = images.pixels.float() / 255
    right = teacher(pixels).argmax(1) == images.labels
    assert right.float().mean() > 0.9
    student, unlabeled = make_classifier(1), ArrayImages(images.pixels, torch.zeros_like(images.labels))
    distill = DistillConfig(steps=80, batch_size=12, lr=0.1, **PLAIN)
    train(student, unlabeled, 4, build_distillation_loss(teacher, distill), distill, 0, "s", tmp_path / "s.pt", "f")
    agreed = student.freeze()(pixels).argmax(1) == teacher(pixels).argmax(1)
    assert agreed.float().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_at", [1, 5, 7, 14])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    make_classifier, images, tmp_path, saved_at_once, optimizer, stop_at
):
    views = AugmentConfig(crop_padding_px=2, flip=True, mixup_probability=0.5, cutmix_probability=0.3)
    config = replace(CONFIG, optimizer=optimizer, augment=views, save_every_s=0)
    log: list[tuple[int, float]] = []

    def run(classifier, state_path, kill_at=None):
        def on_step(step, numbers):
            if step == kill_at:
                raise Stop
            log.append((step, numbers["loss"]))

        classifier.network.fc = nn.Sequential(nn.Dropout(0.5), classifier.network.fc)  # layers draw, too
        train(classifier, images, 4, build_label_loss(config), config, 3, "t", state_path, "f", on_step)

    whole = make_classifier(0)
    run(whole, tmp_path / "whole.pt")
    expected_log, log = log, []
    with pytest.raises(Stop):
        run(make_classifier(0), tmp_path / "killed.pt", kill_at=stop_at)
    resumed = make_classifier(9)  # what it starts with is replaced by the saved state
    run(resumed, tmp_path / "killed.pt")
    assert log == expected_log
    assert [step for step, _ in log] == list(range(STEPS))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_training_goes_on_while_a_slow_disk_takes_the_state(make_classifier, images, tmp_path, monkeypatch):
    config, steps, may_end = replace(CONFIG, save_every_s=0), [], threading.Event()
    written = []

    def write(path, content):
        assert may_end.wait(timeout=60)
        written.append(content["step"])

    def on_step(step, figures):
        steps.append(step)
        if step == STEPS - 2:
            may_end.set()

    monkeypatch.setattr(train_module, "write_state", write)
    train(make_classifier(0), images, 4, build_label_loss(config), config, 0, "t", tmp_path / "s.pt", "f", on_step)
    assert steps == list(range(STEPS))
    assert written[0] == 1, "the first state was copied before the second step changed it"
    assert len(written) <= 3, "a state is left out while the one before is written"


def test_a_disk_that_is_full_stops_the_training(make_classifier, images, tmp_path, monkeypatch):
    def write(path, content):
        raise OSError("the disk is full")

    monkeypatch.setattr(train_module, "write_state", write)
    config = replace(CONFIG, save_every_s=0)
    with pytest.raises(OSError, match="the disk is full"):
        train(make_classifier(0), images, 4, build_label_loss(config), config, 0, "t", tmp_path / "s.pt", "f")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_batch_that_workers_cannot_share_is_refused(make_classifier, images, tmp_path, size):
    config = replace(CONFIG, batch_size=5)
    state = TrainState.open(make_classifier(0), config, tmp_path / "s.pt", {})
    task = Task(state.classifier, build_label_loss(config), config, num_classes=4, seed=0, purpose="t")
    with pytest.raises(
        ValueError, match=f"batch_size: 5 cannot be shared by {size} workers; take a multiple of {size}"
    ):
        train_state(state, task, images, config, DistributedContext(size=size))


def test_a_finished_training_is_not_repeated(make_classifier, images, tmp_path, saved_at_once):
    config = replace(CONFIG, save_every_s=0)
    classifier, steps = make_classifier(0), []
    for _ in range(2):
        steps += logged_steps(classifier, images, config, tmp_path / "s.pt")
    assert steps == list(range(STEPS))


def test_nothing_is_saved_before_the_time_has_passed(make_classifier, images, tmp_path):
    train(make_classifier(0), images, 4, build_label_loss(CONFIG), CONFIG, 0, "t", tmp_path / "s.pt", "f")
    assert not (tmp_path / "s.pt").exists()


def saved_state(classifier, path, run="another"):
    state = TrainState.open(classifier, CONFIG, path, {"run": run})
    state.step = 3
    state.save()
    return path.read_bytes()


def test_a_state_of_another_configuration_is_refused_and_kept(make_classifier, images, tmp_path):
    path = tmp_path / "s.pt"
    data = saved_state(make_classifier(0), path)
    with pytest.raises(ConfigError, match=r"s\.pt was made with another configuration \(run: another there, f here\)"):
        train(make_classifier(0), images, 4, build_label_loss(CONFIG), CONFIG, 0, "t", path, "f")
    assert path.read_bytes() == data


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_state_is_refused_and_kept(make_classifier, images, tmp_path, share):
    path = tmp_path / "s.pt"
    data = saved_state(make_classifier(0), path, "f")
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"s\.pt is damaged .*; remove it to train from the start"):
        train(make_classifier(0), images, 4, build_label_loss(CONFIG), CONFIG, 0, "t", path, "f")
    assert path.stat().st_size == int(share * len(data))


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_saved_state_alone(
    make_classifier, images, tmp_path, saved_at_once, log_every
):
    config, path = replace(CONFIG, save_every_s=0, log_every=log_every), tmp_path / "s.pt"
    calls = 0

    def loss_function(logits, view, targets):
        nonlocal calls
        calls += 1
        return F.cross_entropy(logits, targets) * (float("nan") if calls == 7 else 1)

    with pytest.raises(FloatingPointError, match="training: the loss is nan at step 6; lower lr"):
        train(make_classifier(0), images, 4, loss_function, config, 0, "t", path, "f")
    state = torch.load(path, weights_only=True)
    assert state["step"] == 1 + 5 // log_every * log_every  # saved on logging steps
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())


def test_a_loss_that_is_not_finite_between_logging_steps_is_found_with_its_step(make_classifier, images, tmp_path):
    config, calls = replace(CONFIG, log_every=100), []

    def loss_function(logits, view, targets):
        calls.append(0)
        return F.cross_entropy(logits, targets) * (float("inf") if len(calls) == 4 else 1)

    with pytest.raises(FloatingPointError, match="the loss is inf at step 3"):
        train(make_classifier(0), images, 4, loss_function, config, 0, "t", tmp_path / "s.pt", "f")
    assert not (tmp_path / "s.pt").exists()


def test_logging_steps_are_every_nth_and_the_last(make_classifier, images, tmp_path):
    config = replace(CONFIG, log_every=4)
    assert logged_steps(make_classifier(0), images, config, tmp_path / "s.pt") == [0, 4, 8, 12, 14]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_update_uses_the_learning_rate_of_its_step(make_classifier, images, tmp_path, schedule):
    config = replace(CONFIG, schedule=schedule, warmup_fraction=0.2, momentum=0.0)
    classifier = make_classifier(0)
    bias = classifier.network.fc.bias
    values, rates = [bias[0].item()], []

    def on_step(step, numbers):
        values.append(bias[0].item())
        rates.append(numbers["lr"])

    def loss_function(logits, view, targets):
        return logits[:, 0].mean()  # its gradient for the first bias is 1

    train(classifier, images, 4, loss_function, config, 0, "t", tmp_path / "s.pt", "f", on_step)
    expected = learning_rates(schedule, config.lr, STEPS, 0.2)
    assert rates == list(expected)
    np.testing.assert_allclose(-np.diff(values), expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_weights_but_no_bias_and_no_batch_norm(make_classifier, images, tmp_path, optimizer):
    config = replace(CONFIG, optimizer=optimizer, weight_decay=0.1, schedule="constant", warmup_fraction=0.0)
    config = replace(config, momentum=0.0 if optimizer == "sgd" else None)
    classifier = make_classifier(0)
    torch.nn.init.ones_(classifier.network.fc.bias)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    train(classifier, images, 4, lambda logits, *_: logits.sum() * 0, config, 0, "t", tmp_path / "s.pt", "f")
    for name, parameter in classifier.named_parameters():
        factor = (1 - config.lr * 0.1) ** STEPS if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter, before[name] * factor)


def test_sgd_with_momentum_follows_nesterov_by_hand():
    weight = torch.nn.Parameter(torch.ones(1, 1))
    network = torch.nn.Module()
    network.weight = weight
    optimizer = build_optimizer(network, replace(CONFIG, lr=0.1, momentum=0.9, weight_decay=0.0))
    expected, velocity = 1.0, 0.0
    for _ in range(4):
        weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
        velocity = 0.9 * velocity + 2.0
        expected -= 0.1 * (2.0 + 0.9 * velocity)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(make_classifier, images, tmp_path):
    batches: list[list[float]] = []

    def loss_function(logits, view, targets):
        batches.append(view.sum((1, 2, 3)).tolist())
        return F.cross_entropy(logits, targets)

    train(make_classifier(0), images, 4, loss_function, CONFIG, 0, "t", tmp_path / "s.pt", "f")
    stream = [image for batch in batches for image in batch]
    epochs = [stream[i : i + 24] for i in range(0, 72, 24)]
    everything = sorted((images.pixels.float() / 255).sum((1, 2, 3)).tolist())
    assert all(sorted(epoch) == pytest.approx(everything) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_step_draws_views_of_its_own(make_classifier, images, tmp_path):
    same = ArrayImages(images.pixels[:1].repeat(24, 1, 1, 1), images.labels[:1].repeat(24))
    config, views = replace(CONFIG, batch_size=24, steps=4, augment=AugmentConfig(crop_padding_px=2)), []

    def loss_function(logits, view, targets):
        views.append(view)
        return F.cross_entropy(logits, targets)

    train(make_classifier(0), same, 4, loss_function, config, 0, "t", tmp_path / "s.pt", "f")
    assert len(views) == 4
    assert not any(torch.equal(views[i], views[j]) for i in range(4) for j in range(i))


def test_bfloat16_trains_single_precision_weights(make_classifier, images, tmp_path):
    config, losses = replace(CONFIG, precision="bfloat16", steps=50), []
    classifier = make_classifier(0)
    types = set()

    def loss_function(logits, view, targets):
        types.add(logits.dtype)
        return label_loss(logits, targets, 0.0)

    train(
        classifier,
        images,
        4,
        loss_function,
        config,
        0,
        "t",
        tmp_path / "s.pt",
        "f",
        lambda _, numbers: losses.append(numbers["loss"]),
    )
    assert types == {torch.bfloat16}
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: 0 must be at least 1"),
        ({"batch_size": 1}, "batch_size: 1 must be at least 2"),
        ({"lr": 0.0}, r"lr: 0\.0 must be positive"),
        ({"weight_decay": -0.1}, r"weight_decay: -0\.1 must be at least 0"),
        ({"momentum": 0.9, "optimizer": "adamw"}, r"momentum: 0\.9 is SGD's, optimizer: adamw has none; leave it out"),
        ({"memory_gib": -1.0}, r"memory_gib: -1\.0 must be at least 0"),
        ({"momentum": 1.0}, r"momentum: 1\.0 must be in \[0, 1\)"),
        ({"temperature": 0.0}, r"temperature: 0\.0 must be positive"),
        ({"label_weight": -1.0}, r"label_weight: -1\.0 must be at least 0"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**{"steps": 1, "batch_size": 4, "lr": 0.1} | values)


def test_training_leaves_the_global_generator_alone(make_classifier, images, tmp_path):
    before = torch.get_rng_state()
    train(make_classifier(0), images, 4, build_label_loss(CONFIG), CONFIG, 0, "t", tmp_path / "s.pt")
    assert torch.equal(torch.get_rng_state(), before)
