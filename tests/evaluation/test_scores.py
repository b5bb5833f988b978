"""Scores of stored images."""

import pytest
import torch

from pipeline.evaluation.scores import Scorers, score
from pipeline.models.classifier import Classifier


def test_scores_are_those_of_the_networks_for_the_pixels(make_classifier, device):
    teacher, verifier = (make_classifier(seed, num_classes=7).freeze() for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    scores = score(images, labels, Scorers(teacher=teacher, verifier=verifier))
    for name, network in (("teacher", teacher), ("verifier", verifier)):
        logits = network(images.to(device).float() / 255).cpu()
        for i, row in enumerate(scores):
            label, ranking = labels[i], logits[i].argsort(descending=True).tolist()
            assert row[f"{name}_logit"] == pytest.approx(logits[i, label].item(), rel=1e-5)
            assert row[f"{name}_probability"] == pytest.approx(logits[i].softmax(0)[label].item(), rel=1e-5)
            assert row[f"{name}_prediction"] == ranking[0]
            assert row[f"{name}_top1"] is (label == ranking[0]).item()
            assert row[f"{name}_top5"] is (label.item() in ranking[:5])


def test_run_without_a_verifier_has_the_scores_of_the_teacher(make_classifier):
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    scores = score(images, labels, Scorers(teacher=make_classifier().freeze()))
    names = ("logit", "probability", "prediction", "top1", "top5")
    assert [list(row) for row in scores] == [[f"teacher_{name}" for name in names]] * 2


def test_scores_of_a_run_of_some_classes_are_also_among_these(make_classifier, device):
    whole = make_classifier(num_classes=7).freeze()
    classes = [5, 2, 0]
    teacher = Classifier(whole.network, whole.normalization, 7, classes).to(device)
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(30) % 3
    scores = score(images, labels, Scorers(teacher=teacher))
    of_all = score(images, torch.tensor(classes)[labels], Scorers(teacher=whole))
    assert [{k: v for k, v in row.items() if k != "teacher_top1_among_classes"} for row in scores] == of_all
    predictions = whole(images.to(device).float() / 255).cpu()[:, classes].argmax(1)
    assert [row["teacher_top1_among_classes"] for row in scores] == (predictions == labels).tolist()
    assert 0 < (predictions == labels).sum() < 30
