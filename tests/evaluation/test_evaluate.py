"""Evaluation of a student beside its teacher."""

import pytest
import torch

from pipeline.data.image_sets import ArrayImages
from pipeline.evaluation.evaluate import EvaluationConfig, evaluate, measure
from pipeline.runtime.config import ConfigError


@pytest.fixture
def images() -> ArrayImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (53, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ArrayImages(pixels, torch.randint(0, 4, (53,), generator=generator))


def test_every_image_counts_once_at_any_batch_size(make_classifier, images, device):
    student, teacher = make_classifier(1).freeze(), make_classifier(0).freeze()
    num_done: list[int] = []
    reports = [
        evaluate(student, teacher, images, EvaluationConfig(batch_size=size), num_done.append) for size in (53, 10)
    ]
    assert num_done[0] == num_done[-1] == 53
    assert num_done[1:] == sorted(num_done[1:])
    logits = student(images.pixels.to(device).float() / 255)
    top1 = (logits.argmax(1).cpu() == images.labels).float().mean().item()
    for report in reports:
        assert report.num_images == 53
        assert sum(map(sum, report.student["confusion"])) == 53
        assert report.student["top1"] == pytest.approx(top1)
        assert report.accuracy_retention == pytest.approx(report.student["top1"] / report.teacher["top1"])
    rows = [{k: v for k, v in report.row().items() if not k.endswith("forward_ms")} for report in reports]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_teacher_as_its_own_student_has_full_retention(make_classifier, images):
    teacher = make_classifier(0)  # in training mode: the evaluation must not use batch statistics
    report = evaluate(teacher, teacher, images, EvaluationConfig(batch_size=9))
    assert not teacher.training
    assert (report.agreement, report.accuracy_retention) == (1, 1)
    assert report.kl == pytest.approx(0, abs=1e-6)
    assert report.student["parameters"] == sum(p.numel() for p in teacher.parameters())
    count = f"{report.student['parameters']:,}"
    assert report.line().endswith(f"{count} parameters, teacher {count}")


def test_batch_size_of_zero_raises():
    with pytest.raises(ConfigError, match="batch_size: 0 must be at least 1"):
        EvaluationConfig(batch_size=0)


@pytest.mark.parametrize(
    "run",
    [
        lambda network, images: measure(network, images, EvaluationConfig()),
        lambda network, images: evaluate(network, network, images, EvaluationConfig()),
    ],
    ids=["measure", "evaluate"],
)
def test_non_finite_logits_raise(make_classifier, device, run):
    teacher = make_classifier(0)
    teacher.network.fc.bias.data.fill_(float("nan"))
    images = ArrayImages(torch.zeros(7, 3, 8, 8, dtype=torch.uint8, device=device), torch.zeros(7, device=device))
    with pytest.raises(FloatingPointError, match="logits are not finite on images 0 to 6"):
        run(teacher, images)
