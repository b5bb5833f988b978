"""Metrics by hand, and beside torchmetrics."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.data.image_sets import ArrayImages
from pipeline.evaluation.evaluate import EvaluationConfig, evaluate
from pipeline.evaluation.metrics import Agreement, ClassificationMetrics
from pipeline.runtime.config import ConfigError


def summary(logits: Tensor, labels: Tensor, batch_size: int = 1000) -> dict:
    metrics = ClassificationMetrics(logits.shape[1], logits.device)
    for some_logits, some_labels in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        metrics.add(some_logits, some_labels)
    return metrics.summary()


@pytest.fixture
def answers(device):
    """Random logits (1000, 20), moderately sure and often right, with labels of 19 of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 19, (1000,), generator=generator)
    logits = 2 * torch.randn(1000, 20, generator=generator)
    logits[torch.arange(1000), labels] += 2
    return logits.to(device), labels.to(device)


# Probabilities of four images; the last two predictions are wrong.
PROBABILITIES = [[0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]
LABELS = [0, 1, 0, 1]


def test_metrics_of_four_images_by_hand(device):
    found = summary(torch.tensor(PROBABILITIES, device=device).log() + 5, torch.tensor(LABELS, device=device))
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0  # of three classes
    assert found["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.9) + math.log(0.2) + math.log(0.25)) / 4)
    assert found["calibration_error"] == pytest.approx((0.4 + 0.1 + 0.7 + 0.5) / 4)  # each in a bin of its own
    assert found["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found["per_class_top1"] == [0.5, 0.5, None]


def test_calibration_compares_confidence_and_accuracy_within_a_bin(device):
    logits = torch.tensor([[0.8, 0.2]] * 5, device=device).log()
    four_of_five = summary(logits, torch.tensor([0, 0, 0, 0, 1], device=device))
    assert four_of_five["calibration_error"] == pytest.approx(0, abs=1e-6)
    none_of_five = summary(logits, torch.ones(5, dtype=torch.long, device=device))
    assert none_of_five["calibration_error"] == pytest.approx(0.8)


def test_full_confidence_falls_into_the_last_bin(device):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], device=device)
    found = summary(logits, torch.tensor([0, 0], device=device))
    assert found["calibration_error"] == pytest.approx(0.5)


def test_top5_counts_the_label_among_the_five_best(device):
    logits = torch.arange(8.0, device=device).flip(0).repeat(8, 1)
    found = summary(logits, torch.arange(8, device=device))
    assert found["top5"] == 5 / 8
    assert found["top1"] == 1 / 8


def test_confusion_rows_are_labels_and_columns_predictions(device):
    logits = torch.tensor([[0.0, 1.0, 0.0]] * 3, device=device)
    assert summary(logits, torch.tensor([0, 2, 2], device=device))["confusion"] == [[0, 1, 0], [0, 0, 0], [0, 2, 0]]


def test_metrics_agree_with_torchmetrics(answers, device):
    classification = pytest.importorskip("torchmetrics.classification")
    logits, labels = answers
    found = summary(logits, labels, batch_size=128)
    probabilities = logits.softmax(1)

    def reference(kind: str, **options) -> float:
        return getattr(classification, kind)(num_classes=20, **options).to(device)(probabilities, labels).cpu()

    assert found["calibration_error"] == pytest.approx(
        reference("MulticlassCalibrationError", n_bins=15, norm="l1").item(), abs=1e-5
    )
    assert found["top1"] == pytest.approx(reference("MulticlassAccuracy", average="micro").item(), abs=1e-6)
    assert found["top5"] == pytest.approx(reference("MulticlassAccuracy", average="micro", top_k=5).item(), abs=1e-6)
    assert found["confusion"] == reference("MulticlassConfusionMatrix").tolist()
    per_class = reference("MulticlassAccuracy", average="none").tolist()
    assert found["per_class_top1"][:19] == pytest.approx(per_class[:19])


def test_a_class_without_images_has_no_accuracy(answers):
    found = summary(*answers)
    assert found["per_class_top1"][19] is None
    assert None not in found["per_class_top1"][:19]


@pytest.mark.parametrize("batch_size", [1, 7, 999])
def test_metrics_do_not_depend_on_the_batch_size(answers, batch_size):
    whole, parts = summary(*answers), summary(*answers, batch_size=batch_size)
    assert parts["confusion"] == whole["confusion"]
    for name in ("top1", "top5", "nll", "calibration_error"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)


def test_likeness_by_hand(device):
    teacher = torch.tensor([[0.5, 0.5], [0.9, 0.1]], device=device)
    student = torch.tensor([[0.25, 0.75], [0.6, 0.4]], device=device)
    agreement = Agreement()
    agreement.add(student.log() + 3, teacher.log() - 2)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert agreement.summary()["kl"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert agreement.summary()["agreement"] == 0.5


def test_likeness_does_not_depend_on_the_batch_size(device):
    student, teacher = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).to(device)
    whole, parts = Agreement(), Agreement()
    whole.add(student, teacher)
    for some_student, some_teacher in zip(student.split(7), teacher.split(7), strict=True):
        parts.add(some_student, some_teacher)
    assert parts.summary() == pytest.approx(whole.summary(), rel=1e-5)


def test_a_network_agrees_with_itself(answers):
    agreement = Agreement()
    agreement.add(answers[0], answers[0])
    assert agreement.summary() == {"agreement": 1.0, "kl": pytest.approx(0, abs=1e-6)}


@pytest.fixture
def images() -> ArrayImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (53, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ArrayImages(pixels, torch.randint(0, 4, (53,), generator=generator))


def test_an_evaluation_sees_every_image_once_whatever_the_batch_size(make_classifier, images, device):
    student, teacher = make_classifier(1).freeze(), make_classifier(0).freeze()
    done: list[int] = []
    reports = [
        evaluate(student, teacher, images, 4, EvaluationConfig(batch_size=size), device, on_batch=done.append)
        for size in (53, 10)
    ]
    assert done[0] == done[-1] == 53
    assert done[1:] == sorted(done[1:])
    logits = student(images.pixels.to(device).float() / 255)
    right = (logits.argmax(1).cpu() == images.labels).float().mean().item()
    for report in reports:
        assert report.num_images == 53
        assert sum(map(sum, report.student["confusion"])) == 53
        assert report.student["top1"] == pytest.approx(right)
        assert report.accuracy_retention == pytest.approx(report.student["top1"] / report.teacher["top1"])
    rows = [{k: v for k, v in report.row().items() if not k.endswith("forward_ms")} for report in reports]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_an_evaluation_of_the_teacher_as_its_own_student_recovers_all(make_classifier, images, device):
    teacher = make_classifier(0)  # in training mode: the evaluation must not use batch statistics
    report = evaluate(teacher, teacher, images, 4, EvaluationConfig(batch_size=9), device)
    assert not teacher.training
    assert (report.agreement, report.accuracy_retention) == (1, 1)
    assert report.kl == pytest.approx(0, abs=1e-6)
    assert report.student["parameters"] == sum(p.numel() for p in teacher.parameters())


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(ConfigError, match="batch_size: 0 must be at least 1"):
        EvaluationConfig(batch_size=0)


def test_judged_among_some_classes_alone_accuracy_counts_their_images_and_agreement_all(make_classifier, device):
    student, teacher = make_classifier(0).freeze(), make_classifier(1).freeze()
    pixels = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = ArrayImages(pixels.to(device), (torch.arange(60) % 4).to(device))
    report = evaluate(student, teacher, images, 4, EvaluationConfig(batch_size=7, classes=(3, 1)), device)
    answers = [network(images.pixels / 255)[:, [3, 1]].argmax(1) for network in (student, teacher)]
    own = (images.labels == 3) | (images.labels == 1)
    right = answers[0][own] == (images.labels[own] == 1).long()
    assert (report.num_images, report.num_compared, report.classes) == (30, 60, [3, 1])
    assert report.student["top1"] == pytest.approx(right.float().mean().item())
    assert report.agreement == pytest.approx((answers[0] == answers[1]).float().mean().item())
    assert torch.tensor(report.student["confusion"]).sum() == 30


def test_classes_without_test_images_and_lists_that_cannot_be_meant_are_refused(make_classifier, device):
    teacher = make_classifier(0).freeze()
    images = ArrayImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device=device), torch.zeros(4, device=device))
    with pytest.raises(ValueError, match=r"there is no test image of the classes \[1, 2\]"):
        evaluate(teacher, teacher, images, 4, EvaluationConfig(classes=(1, 2)), device)
    for classes in ((), (1,), (1, 1)):
        with pytest.raises(ConfigError, match="must be two or more different classes"):
            EvaluationConfig(classes=classes)
