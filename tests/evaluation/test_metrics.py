"""Metrics compared with values by hand and with torchmetrics."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.metrics import Agreement, ClassificationMetrics


def summary(logits: Tensor, labels: Tensor, batch_size: int = 1000) -> dict:
    metrics = ClassificationMetrics(logits.shape[1], logits.device)
    for batch_logits, batch_labels in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        metrics.add(batch_logits, batch_labels)
    return metrics.summary()


@pytest.fixture
def logits_and_labels(device):
    """Random logits (1000, 20), often right, with labels (1000,) of 19 of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 19, (1000,), generator=generator)
    logits = 2 * torch.randn(1000, 20, generator=generator)
    logits[torch.arange(1000), labels] += 2
    return logits.to(device), labels.to(device)


# Probabilities of four images; the last two predictions are wrong.
PROBABILITIES = [[0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]
LABELS = [0, 1, 0, 1]


def test_metrics_of_four_images_by_hand(device):
    metrics = summary(torch.tensor(PROBABILITIES, device=device).log() + 5, torch.tensor(LABELS, device=device))
    assert metrics["top1"] == 0.5
    assert metrics["top5"] == 1.0  # of three classes
    assert metrics["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.9) + math.log(0.2) + math.log(0.25)) / 4)
    assert metrics["calibration_error"] == pytest.approx((0.4 + 0.1 + 0.7 + 0.5) / 4)  # each is in a bin of its own
    assert metrics["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics["per_class_top1"] == [0.5, 0.5, None]


def test_calibration_error_compares_confidence_and_accuracy_per_bin(device):
    logits = torch.tensor([[0.8, 0.2]] * 5, device=device).log()
    four_of_five = summary(logits, torch.tensor([0, 0, 0, 0, 1], device=device))
    assert four_of_five["calibration_error"] == pytest.approx(0, abs=1e-6)
    none_of_five = summary(logits, torch.ones(5, dtype=torch.long, device=device))
    assert none_of_five["calibration_error"] == pytest.approx(0.8)


def test_calibration_bins_hold_counts_confidence_and_accuracy(device):
    logits, labels = torch.tensor(PROBABILITIES, device=device).log(), torch.tensor(LABELS, device=device)
    bins = summary(logits, labels)["calibration_bins"]
    by_bin = {i: (n, bins["confidence"][i], bins["top1"][i]) for i, n in enumerate(bins["num_images"]) if n}
    assert by_bin == {  # of 15 bins
        7: (1, pytest.approx(0.5), 0.0),
        9: (1, pytest.approx(0.6), 1.0),
        10: (1, pytest.approx(0.7), 0.0),
        13: (1, pytest.approx(0.9), 1.0),
    }
    assert [len(column) for column in bins.values()] == [15] * 3
    assert bins["confidence"][0] is bins["top1"][0] is None


def test_confidence_of_one_is_in_the_last_bin(device):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], device=device)
    metrics = summary(logits, torch.tensor([0, 0], device=device))
    assert metrics["calibration_error"] == pytest.approx(0.5)


def test_top5_counts_labels_among_the_five_best(device):
    logits = torch.arange(8.0, device=device).flip(0).repeat(8, 1)
    metrics = summary(logits, torch.arange(8, device=device))
    assert metrics["top5"] == 5 / 8
    assert metrics["top1"] == 1 / 8


def test_confusion_rows_are_labels_and_columns_predictions(device):
    logits = torch.tensor([[0.0, 1.0, 0.0]] * 3, device=device)
    assert summary(logits, torch.tensor([0, 2, 2], device=device))["confusion"] == [[0, 1, 0], [0, 0, 0], [0, 2, 0]]


def test_metrics_match_torchmetrics(logits_and_labels, device):
    classification = pytest.importorskip("torchmetrics.classification")
    logits, labels = logits_and_labels
    metrics = summary(logits, labels, batch_size=128)
    probabilities = logits.softmax(1)

    def reference(kind: str, **options) -> float:
        return getattr(classification, kind)(num_classes=20, **options).to(device)(probabilities, labels).cpu()

    assert metrics["calibration_error"] == pytest.approx(
        reference("MulticlassCalibrationError", n_bins=15, norm="l1").item(), abs=1e-5
    )
    assert metrics["top1"] == pytest.approx(reference("MulticlassAccuracy", average="micro").item(), abs=1e-6)
    assert metrics["top5"] == pytest.approx(reference("MulticlassAccuracy", average="micro", top_k=5).item(), abs=1e-6)
    assert metrics["confusion"] == reference("MulticlassConfusionMatrix").tolist()
    per_class = reference("MulticlassAccuracy", average="none").tolist()
    assert metrics["per_class_top1"][:19] == pytest.approx(per_class[:19])


def test_class_without_images_has_no_accuracy(logits_and_labels):
    metrics = summary(*logits_and_labels)
    assert metrics["per_class_top1"][19] is None
    assert None not in metrics["per_class_top1"][:19]


@pytest.mark.parametrize("batch_size", [1, 7, 999])
def test_metrics_do_not_depend_on_the_batch_size(logits_and_labels, batch_size):
    at_once, in_batches = summary(*logits_and_labels), summary(*logits_and_labels, batch_size=batch_size)
    assert in_batches["confusion"] == at_once["confusion"]
    for name in ("top1", "top5", "nll", "calibration_error"):
        assert in_batches[name] == pytest.approx(at_once[name], rel=1e-6)


def test_agreement_and_kl_by_hand(device):
    teacher = torch.tensor([[0.5, 0.5], [0.9, 0.1]], device=device)
    student = torch.tensor([[0.25, 0.75], [0.6, 0.4]], device=device)
    agreement = Agreement()
    agreement.add(student.log() + 3, teacher.log() - 2)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert agreement.summary()["kl"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert agreement.summary()["agreement"] == 0.5


def test_agreement_does_not_depend_on_the_batch_size(device):
    student, teacher = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).to(device)
    at_once, in_batches = Agreement(), Agreement()
    at_once.add(student, teacher)
    for batch_student, batch_teacher in zip(student.split(7), teacher.split(7), strict=True):
        in_batches.add(batch_student, batch_teacher)
    assert in_batches.summary() == pytest.approx(at_once.summary(), rel=1e-5)


def test_network_agrees_with_itself(logits_and_labels):
    agreement = Agreement()
    agreement.add(logits_and_labels[0], logits_and_labels[0])
    assert agreement.summary() == {"agreement": 1.0, "kl": pytest.approx(0, abs=1e-6)}
