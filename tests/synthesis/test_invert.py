"""Inversion: its images, its phases and views, and its errors."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_run import CUDA_GRAPHS, PLAIN
from torch import Tensor
from torch._dynamo.utils import counters

import pipeline.synthesis.invert
from pipeline.data.views import scaled_size
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import ConfigError
from pipeline.runtime.schedules import learning_rates
from pipeline.synthesis.config import InversionConfig, PhaseConfig
from pipeline.synthesis.inputs import INPUT_MEAN, INPUT_STD, to_pixels
from pipeline.synthesis.invert import Callbacks, Inversion
from pipeline.synthesis.objective import Networks, open_objective
from pipeline.synthesis.terms import TermConfig

SIZE = (8, 8)
ONLY_L2 = TermConfig(classification=0.0, image_l2=1.0)


def phases(*pairs: tuple[float, int]) -> tuple[PhaseConfig, ...]:
    return tuple(PhaseConfig(scale=scale, steps=steps) for scale, steps in pairs)


CONFIG = InversionConfig(
    phases=phases((1.0, 6)),
    terms=TermConfig(feature_divergence=1.0, tv_l2=1e-3),
    jitter_px=1,
    flip=True,
    **PLAIN,
)


def invert(teacher, labels, size, config, generator, *, student=None, ensemble=(), on_step=None) -> Inversion:
    networks = Networks(teacher=teacher, student=student, ensemble=ensemble)
    with open_objective(networks, config, size) as objective:
        return pipeline.synthesis.invert.invert(objective, labels, config, generator, Callbacks(on_step=on_step))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def teacher(make_classifier) -> Classifier:
    return make_classifier(0).freeze()


@pytest.fixture
def labels(device) -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1], device=device)


def record_views(classifier: Classifier) -> list[Tensor]:
    """A list to which every input of the network of `classifier` is appended."""
    views: list[Tensor] = []
    classifier.network.register_forward_pre_hook(lambda _, inputs: views.append(inputs[0].detach().clone()))
    return views


class Scale(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def pixels_of(classifier: Classifier, view: Tensor) -> Tensor:
    """The pixels of a view, without the normalization of the classifier."""
    return view * classifier.std + classifier.mean


@pytest.mark.parametrize("size", [(8, 8), (5, 12)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.01, 0.7, 1.0)])
def test_images_are_uint8_of_the_configured_shape(make_classifier, labels, size, scales):
    teacher = make_classifier(0, mean=(0.3,), std=(0.4,)).freeze()
    config = replace(CONFIG, phases=phases(*((scale, 2) for scale in scales)))
    inversion = invert(teacher, labels, size, config, seeded())
    assert inversion.images.dtype == torch.uint8
    assert inversion.images.shape == (6, 1, *size)
    assert torch.equal(inversion.labels, labels.cpu())
    assert inversion.term_names == ("classification", "feature_divergence", "tv_l2")
    assert inversion.trace.shape == (2 * len(scales), 3)
    assert torch.isfinite(inversion.trace).all()


def test_scaled_size_is_rounded_and_at_least_two():
    assert [scaled_size(scale, (32, 9)) for scale in (1, 0.5, 0.01)] == [(32, 9), (16, 4), (2, 2)]


def test_images_are_those_of_the_last_step_not_of_the_lowest_loss(make_classifier, labels):
    """The half-size phase and earlier steps of the last phase have lower losses."""
    config = replace(
        CONFIG,
        phases=phases((0.5, 20), (1.0, 7)),
        terms=ONLY_L2,
        lr=0.6,
        schedule="constant",
        warmup_fraction=0.0,
        jitter_px=0,
        flip=False,
    )
    inversion = invert(make_classifier(0).freeze(), labels, SIZE, config, seeded())
    losses = inversion.trace[:, 0]
    teacher = make_classifier(0).freeze()
    views = record_views(teacher)
    invert(teacher, labels, SIZE, replace(config, phases=phases((0.5, 20), (1.0, 8))), seeded())
    assert losses[:20].min() < losses[20:].min()
    assert views[-1].flatten(1).norm(dim=1).mean() > losses[20:].min()
    pixels = pixels_of(teacher, views[-1]).cpu()  # after as many updates as in the first run
    torch.testing.assert_close(inversion.images / 255, pixels.clamp(0, 1), atol=0.5 / 255 + 1e-5, rtol=0)


def test_pixels_are_rounded_not_truncated(teacher, labels):
    """Inputs of zero are pixels of 0.45 * 255 = 114.75."""
    config = replace(CONFIG, phases=phases((1.0, 300)), terms=ONLY_L2, lr=0.05)
    images = invert(teacher, labels, SIZE, config, seeded()).images
    assert (images == 115).float().mean() > 0.9


@pytest.mark.parametrize(
    ("mean", "std", "size", "num_classes"),
    [
        ((0.0,), (1.0,), (8, 8), 2),
        ((0.5, 0.25), (0.1, 2.0), (7, 5), 11),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (4, 16), 4),
        ((0.1, 0.3, 0.5, 0.9), (1.0, 0.5, 0.25, 0.125), (9, 9), 3),
    ],
)
def test_any_normalization_channels_size_and_classes(make_classifier, device, mean, std, size, num_classes):
    """Inputs of zero are the same gray for every teacher."""
    teacher = make_classifier(0, mean=mean, std=std, num_classes=num_classes).freeze()
    config = replace(CONFIG, phases=phases((0.5, 50), (1.0, 150)), terms=ONLY_L2)
    labels = torch.arange(num_classes, device=device)
    images = invert(teacher, labels, size, config, seeded()).images
    assert images.shape == (num_classes, len(mean), *size)
    torch.testing.assert_close(images / 255, torch.full(images.shape, INPUT_MEAN), atol=3 / 255, rtol=0)


def test_images_do_not_depend_on_where_the_teacher_normalizes(make_classifier, labels):
    teacher = make_classifier(0).freeze()
    raw = Classifier(copy.deepcopy(teacher), ((0.0,) * 3, (1.0,) * 3), 4).freeze()  # normalizes inside the network
    bytes_ = Classifier(torch.nn.Sequential(Scale(1 / 255), raw), ((0.0,) * 3, (1 / 255,) * 3), 4).freeze()
    images = [invert(t.to(labels.device), labels, SIZE, CONFIG, seeded()).images for t in (teacher, raw, bytes_)]
    assert (images[0].int() - images[1].int()).abs().max() <= 1
    assert (images[0].int() - images[2].int()).abs().max() <= 1


def test_images_depend_on_the_generator(teacher, labels):
    torch.manual_seed(1)
    first = invert(teacher, labels, SIZE, CONFIG, seeded(5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = invert(teacher, labels, SIZE, CONFIG, seeded(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.trace, again.trace)
    assert not torch.equal(first.images, invert(teacher, labels, SIZE, CONFIG, seeded(6)).images)


def test_teacher_and_student_do_not_change(teacher, make_classifier, labels):
    student = make_classifier(1).freeze()
    before = {id(n): {k: v.clone() for k, v in n.state_dict().items()} for n in (teacher, student)}
    config = replace(CONFIG, terms=replace(CONFIG.terms, competition=1.0))
    invert(teacher, labels, SIZE, config, seeded(), student=student)
    for network in (teacher, student):
        assert all(torch.equal(v, before[id(network)][k]) for k, v in network.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert not any(module.training for module in network.modules())
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_loss_falls_and_the_teacher_predicts_the_labels(teacher, labels, device):
    config = replace(CONFIG, phases=phases((1.0, 120)), terms=TermConfig(feature_divergence=0.1), lr=0.2)
    inversion = invert(teacher, labels, SIZE, config, seeded())
    totals = inversion.trace.sum(1)
    assert totals[-10:].mean() < 0.7 * totals[:10].mean()
    predictions = teacher(inversion.images.to(device).float() / 255).argmax(1)
    assert torch.equal(predictions, labels)


def test_statistics_are_matched(teacher, labels):
    config = replace(
        CONFIG, phases=phases((1.0, 80)), terms=TermConfig(classification=0.0, feature_divergence=1.0), lr=0.1
    )
    trace = invert(teacher, labels, SIZE, config, seeded()).trace[:, 0]
    assert trace[-1] < 0.3 * trace[0]


def test_clamp_keeps_the_inputs_in_the_pixel_range(make_classifier, labels):
    extremes = {}
    for clamp in (True, False):
        teacher = make_classifier(0).freeze()
        views = record_views(teacher)
        invert(teacher, labels, SIZE, replace(CONFIG, phases=phases((1.0, 5)), lr=0.5, clamp=clamp), seeded())
        pixels = torch.cat([pixels_of(teacher, view) for view in views[1:]])
        extremes[clamp] = (pixels.min().item(), pixels.max().item())
    assert extremes[True] == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert extremes[False][0] < -0.01
    assert extremes[False][1] > 1.01


def test_every_phase_has_a_new_adam_and_its_own_warmup(make_classifier, labels):
    """The first step of a new Adam changes every input by the learning rate."""
    teacher = make_classifier(0).freeze()
    views = record_views(teacher)
    config = replace(
        CONFIG,
        phases=phases((0.5, 10), (1.0, 20)),
        terms=ONLY_L2,
        lr=0.1,
        warmup_fraction=0.3,
        jitter_px=0,
        flip=False,
        clamp=False,
    )
    invert(teacher, labels, SIZE, config, seeded())
    assert [view.shape[2] for view in views] == [4] * 10 + [8] * 20
    for first, warmup_steps in ((0, 3), (10, 6)):
        change = (pixels_of(teacher, views[first + 1]) - pixels_of(teacher, views[first])).abs() / INPUT_STD
        torch.testing.assert_close(change.median().item(), 0.1 / (warmup_steps + 1), atol=1e-4, rtol=0)


def test_phase_starts_from_the_scaled_inputs_of_the_phase_before(make_classifier, labels):
    """After bilinear doubling, the mean of two neighbors is 3/4 of their source pixel and 1/8 of each one beside it."""
    teacher = make_classifier(0).freeze()
    views = record_views(teacher)
    config = replace(CONFIG, phases=phases((0.5, 10), (1.0, 1)), jitter_px=0, flip=False, schedule="constant", lr=1e-6)
    invert(teacher, labels, (16, 16), config, seeded())
    last_small, first_large = views[9], views[10]
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8], device=labels.device)
    blurred = F.conv2d(last_small, torch.outer(kernel, kernel).expand(3, 1, 3, 3), groups=3)
    torch.testing.assert_close(F.avg_pool2d(first_large, 2)[:, :, 1:-1, 1:-1], blurred, atol=1e-4, rtol=0)


def test_jitter_is_scaled_with_the_phase(monkeypatch, teacher, labels):
    calls = []

    def record(inputs, jitter_px, flip, generator):
        calls.append((jitter_px, flip))
        return inputs

    monkeypatch.setattr(pipeline.synthesis.invert, "roll_and_flip", record)
    config = replace(CONFIG, phases=phases((0.5, 2), (1.0, 1)), jitter_px=4, flip=False)
    invert(teacher, labels, SIZE, config, seeded())
    assert calls == [(2, False), (2, False), (4, False)]


def test_crop_area_shows_a_scaled_up_box_in_every_step(make_classifier, labels):
    """In a scaled-up box of a tenth of the area, neighboring pixels differ little."""
    roughness = {}
    for area in ((1.0, 1.0), (0.1, 0.1)):
        teacher = make_classifier(0).freeze()
        views = record_views(teacher)
        invert(teacher, labels, SIZE, replace(CONFIG, crop_area=area), seeded())
        roughness[area] = [(view[..., 1:] - view[..., :-1]).abs().mean().item() for view in views]
    assert max(roughness[0.1, 0.1]) < 0.6 * min(roughness[1.0, 1.0])


@pytest.mark.parametrize(("log_every", "expected"), [(3, [0, 3, 6, 9, 10]), (1, list(range(11))), (50, [0, 10])])
def test_on_step_is_called_on_logging_steps_only(teacher, labels, log_every, expected):
    reports: list[tuple[int, dict[str, float], Tensor]] = []
    config = replace(CONFIG, phases=phases((0.5, 4), (1.0, 7)), log_every=log_every)
    inversion = invert(teacher, labels, SIZE, config, seeded(), on_step=lambda *report: reports.append(report))
    assert [step for step, _, _ in reports] == expected
    for step, parts, _ in reports:
        assert list(parts) == list(inversion.term_names)
        assert list(parts.values()) == inversion.trace[step].tolist()


@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_on_step_gets_the_inputs_that_the_step_shows_the_teacher(teacher, labels, basis):
    shown = []
    config = replace(CONFIG, phases=phases((0.5, 3), (1.0, 3)), jitter_px=0, flip=False, log_every=1, basis=basis)
    views = record_views(teacher)
    invert(teacher, labels, SIZE, config, seeded(), on_step=lambda step, terms, inputs: shown.append(inputs.clone()))
    assert [inputs.shape[2:] for inputs in shown] == [(4, 4)] * 3 + [SIZE] * 3
    assert not any(inputs.requires_grad for inputs in shown)
    for view, inputs in zip(views, shown, strict=True):
        torch.testing.assert_close(pixels_of(teacher, view), to_pixels(inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("log_every", [1, 2, 50])
def test_non_finite_term_raises_with_name_and_step(teacher, labels, log_every):
    calls = 0

    def poison(module, inputs, logits):
        nonlocal calls
        calls += 1
        return logits * math.nan if calls == 4 else logits

    handle = teacher.network.register_forward_hook(poison)
    reports = []
    config = replace(CONFIG, log_every=log_every, phases=phases((0.5, 2), (1.0, 4)))
    with pytest.raises(
        FloatingPointError, match=r"term 'classification' is nan at step 3; lower synthesis\.inversion\.lr or"
    ):
        invert(teacher, labels, SIZE, config, seeded(), on_step=lambda step, *_: reports.append(step))
    assert all(step < 3 for step in reports)
    handle.remove()
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())


def test_objective_removes_hooks_after_an_exception(teacher, labels):
    def interrupt(*report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(teacher, labels, SIZE, CONFIG, seeded(), on_step=interrupt)
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())


def test_competition_shows_the_student_the_same_pixels_and_makes_it_disagree(make_classifier, labels):
    teacher = make_classifier(0).freeze()
    student = make_classifier(1, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.7)).freeze()
    views, student_views = record_views(teacher), record_views(student)
    config = replace(CONFIG, phases=phases((1.0, 60)), terms=TermConfig(competition=5.0, competition_temperature=1.0))
    inversion = invert(teacher, labels, SIZE, config, seeded(), student=student)
    assert inversion.term_names == ("classification", "competition")
    for view, student_view in zip(views, student_views, strict=True):
        torch.testing.assert_close(pixels_of(student, student_view), pixels_of(teacher, view), atol=1e-5, rtol=1e-4)
    assert inversion.trace[-1, 1] < inversion.trace[0, 1] - 0.1
    assert ((inversion.trace[:, 1] > 5 * (1 - math.log(2)) - 1e-3) & (inversion.trace[:, 1] <= 5 + 1e-3)).all()


def test_ensemble_sees_the_same_pixels_and_its_loss_falls(make_classifier, labels):
    teacher = make_classifier(0).freeze()
    second = make_classifier(1, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.7)).freeze()
    config = replace(CONFIG, phases=phases((1.0, 80)), terms=TermConfig())
    without = invert(teacher, labels, SIZE, config, seeded())
    views, second_views = record_views(teacher), record_views(second)
    with_ensemble = invert(teacher, labels, SIZE, config, seeded(), ensemble=[second])
    pixels = pixels_of(teacher, views[5])
    torch.testing.assert_close(pixels_of(second, second_views[5]), pixels, atol=1e-5, rtol=1e-4)
    losses = [F.cross_entropy(second(run.images.to(labels.device) / 255), labels) for run in (without, with_ensemble)]
    assert losses[1] < losses[0] - 0.3


def test_competition_without_a_student_is_left_out(teacher, labels):
    config = replace(CONFIG, terms=replace(CONFIG.terms, competition=1.0))
    with_term, without = (invert(teacher, labels, SIZE, c, seeded()) for c in (config, CONFIG))
    assert with_term.term_names == without.term_names
    assert torch.equal(with_term.images, without.images)


def test_teacher_without_batch_norm_raises(device, labels):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    plain = Classifier(network, ((0.5,), (0.5,)), 4).freeze().to(device)
    with pytest.raises(ValueError, match=r"the teacher \(Sequential\) has no BatchNorm layer .*choose a teacher with"):
        invert(plain, labels, SIZE, CONFIG, seeded())


def test_bfloat16_is_close_to_float32(teacher, labels):
    float32, bfloat16 = (
        invert(teacher, labels, SIZE, replace(CONFIG, precision=precision), seeded())
        for precision in ("float32", "bfloat16")
    )
    torch.testing.assert_close(bfloat16.trace[0], float32.trace[0], atol=0.02, rtol=0.02)
    assert not torch.equal(bfloat16.trace[0], float32.trace[0])
    assert (bfloat16.images.float() - float32.images.float()).abs().mean() < 20


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.05), ("constant", 1.0)])
def test_learning_rates_warm_up_then_fall_or_stay(schedule, last):
    rates = learning_rates(schedule, 2.0, 100, 0.2)
    assert len(rates) == 100
    assert rates[:20] == pytest.approx([2.0 * (i + 1) / 21 for i in range(20)])
    assert rates[20] == max(rates) == 2.0
    assert list(rates[20:]) == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] <= 2.0 * last
    if schedule == "cosine":
        assert rates[60] == pytest.approx(1.0)  # half way
    else:
        assert set(rates[20:]) == {2.0}


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_schedules_of_few_steps_have_positive_rates(num_steps):
    for fraction in (0.0, 0.05, 0.9):
        rates = learning_rates("cosine", 0.1, num_steps, fraction)
        assert len(rates) == num_steps
        assert all(0 < rate <= 0.1 for rate in rates)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phases": ()}, "phases: the last phase must have scale 1"),
        ({"phases": phases((1.0, 1), (0.5, 1))}, "phases: the last phase must have scale 1"),
        ({"lr": 0.0}, r"lr: 0\.0 must be positive"),
        ({"betas": (0.5, 1.0)}, r"betas: \[0\.5, 1\.0\] must lie in \[0, 1\)"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction: 1\.0 must be in \[0, 1\)"),
        ({"jitter_px": -1}, "jitter_px: -1 must be at least 0"),
        ({"crop_area": (0.5, 1.1)}, r"crop_area: \[0\.5, 1\.1\] must be a range within \(0, 1\]"),
        ({"cuda_graphs": True, "compile": False}, "cuda_graphs: true needs compile: true or auto"),
        ({"log_every": 0}, "log_every: 0 must be at least 1"),
    ],
)
def test_invalid_inversion_config_raises(values, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **values)
    with pytest.raises(ConfigError, match=r"scale: 1\.5 must be in \(0, 1\]"):
        PhaseConfig(scale=1.5, steps=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # raised when torch prepares its first graph
@pytest.mark.parametrize("cuda_graphs", [False, CUDA_GRAPHS])
def test_compiled_step_makes_the_images_of_the_eager_step(teacher, labels, compiler, cuda_graphs):
    eager = [invert(teacher, labels[:n], SIZE, CONFIG, seeded()) for n in (6, 5)]
    compiled_config = replace(CONFIG, compile=True, cuda_graphs=cuda_graphs)
    with open_objective(Networks(teacher=teacher), compiled_config, SIZE) as objective:
        compiled = [pipeline.synthesis.invert.invert(objective, labels[:n], CONFIG, seeded()) for n in (6, 5)]
    assert not counters["inductor"]["cudagraph_skips"]
    for expected, inversion in zip(eager, compiled, strict=True):
        torch.testing.assert_close(inversion.trace, expected.trace, rtol=1e-3, atol=1e-4)
        assert (inversion.images.int() - expected.images.int()).abs().max() <= 1


def test_labels_of_some_classes_are_those_of_the_teacher(make_classifier, device):
    """The classification term sees all classes of the teacher; the competition only those that the student has."""
    teacher, student = make_classifier(0).freeze(), make_classifier(1, num_classes=2).freeze()
    view = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    labels, classes = torch.tensor([0, 1, 1, 0, 1, 0], device=device), torch.tensor([3, 1], device=device)
    config = replace(CONFIG, terms=TermConfig(classification=1.0, feature_divergence=1.0))
    competing = replace(CONFIG, terms=TermConfig(classification=0.0, competition=1.0, feature_divergence=1.0))
    with open_objective(Networks(teacher=teacher), config, SIZE) as objective:
        expected = objective.loss(view, classes[labels])[1]
    with open_objective(Networks(teacher=teacher, classes=classes), config, SIZE) as objective:
        assert torch.equal(objective.loss(view, labels)[1], expected)
    networks = Networks(teacher=teacher, student=student, classes=classes)
    with open_objective(networks, competing, SIZE) as objective:
        term = dict(zip(objective.terms, objective.loss(view, labels)[1].tolist(), strict=True))["competition"]
    pixels = INPUT_MEAN + INPUT_STD * view
    p, q = (F.softmax(logits / 3, dim=1) for logits in (teacher(pixels)[:, classes], student(pixels)))
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    assert term == pytest.approx(1 - js.item(), abs=1e-5)


def test_small_views_show_crops_of_larger_images(teacher, labels, monkeypatch):
    sizes = []
    measured = pipeline.synthesis.invert.random_resized_crop
    monkeypatch.setattr(
        pipeline.synthesis.invert,
        "random_resized_crop",
        lambda *arguments: sizes.append(measured(*arguments).shape[2:]) or measured(*arguments),
    )
    config = replace(CONFIG, view_scale=0.5, crop_area=(0.3, 1.0))
    assert invert(teacher, labels, (16, 12), config, seeded()).images.shape == (6, 3, 16, 12)
    assert sizes == [(8, 6)] * 6
    seen = []
    handle = teacher.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].shape[2:]))
    invert(teacher, labels, (16, 12), replace(config, crop_area=(1.0, 1.0)), seeded())
    handle.remove()
    assert seen == [(8, 6)] * 6
    assert len(sizes) == 6


@pytest.mark.parametrize("clamp", [True, False])
def test_a_fourier_basis_lowers_the_loss(teacher, labels, clamp):
    config = replace(CONFIG, basis="fourier", phases=phases((0.5, 20), (1.0, 40)), lr=0.2, clamp=clamp)
    inversion = invert(teacher, labels, (16, 16), config, seeded())
    assert inversion.trace[-5:].sum(1).mean() < 0.8 * inversion.trace[20:25].sum(1).mean()
    pixel = invert(teacher, labels, (16, 16), replace(config, basis="pixels"), seeded())
    assert (inversion.images != pixel.images).any()
