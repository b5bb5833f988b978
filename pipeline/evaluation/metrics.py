"""Metrics of test images: batches add to sums, which are divided once, at the end."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Equal-width confidence bins of the expected calibration error (Guo et al., 2017, arXiv 1706.04599).
CALIBRATION_BINS = 15


def top5_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is among the five highest logits, or among all if there are fewer; bool (N,)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


class ClassificationMetrics:
    """Sums of one network: confusion counts (K, K) by (label, prediction), top-5 hits, NLL, calibration bins."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.confusion, self.top5, self.nll = zeros(num_classes, num_classes), zeros(), zeros()
        self.bins = zeros(CALIBRATION_BINS, 3)  # images, confidence, hits

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits (N, K) and labels (N,)."""
        probabilities = logits.float().softmax(1)
        confidence, prediction = probabilities.max(1)
        hits = prediction == labels
        ones = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
        self.confusion.index_put_((labels, prediction), ones, accumulate=True)
        self.top5 += top5_hits(logits, labels).sum()
        self.nll += F.cross_entropy(logits.float(), labels, reduction="sum")
        index = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
        self.bins.index_add_(0, index, torch.stack([ones, confidence.double(), hits.double()], dim=1))

    def summary(self) -> dict[str, Any]:
        """The metrics of all images so far; the top-1 of a class without images, and of an empty bin, is None."""
        confusion = self.confusion.cpu()
        count = confusion.sum()
        per_class = confusion.diagonal() / confusion.sum(1)
        num_images, confidence, hits = self.bins.cpu().unbind(1)
        gaps = (self.bins[:, 1] - self.bins[:, 2]).abs().sum()
        return {
            "top1": (confusion.diagonal().sum() / count).item(),
            "top5": (self.top5.cpu() / count).item(),
            "nll": (self.nll.cpu() / count).item(),
            "calibration_error": (gaps.cpu() / count).item(),
            "calibration_bins": {
                "num_images": num_images.long().tolist(),
                "confidence": _or_none(confidence / num_images),
                "top1": _or_none(hits / num_images),
            },
            "per_class_top1": _or_none(per_class),
            "confusion": confusion.long().tolist(),
        }


def _or_none(ratios: Tensor) -> list[float | None]:
    """Ratios (N,), with None for 0 / 0."""
    return [None if math.isnan(ratio) else ratio for ratio in ratios.tolist()]


@dataclass
class Agreement:
    """Sums of a student beside its teacher: images, equal predictions, and KL(teacher || student) in nats."""

    count: int = 0
    num_equal: float = 0.0
    kl: float = 0.0

    def add(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        """Add a batch of logits (N, K) of both."""
        student, teacher = (logits.float().log_softmax(1) for logits in (student_logits, teacher_logits))
        self.count += len(student)
        self.num_equal += (student_logits.argmax(1) == teacher_logits.argmax(1)).sum().item()
        self.kl += F.kl_div(student, teacher, log_target=True, reduction="sum").item()

    def summary(self) -> dict[str, float]:
        """The share of equal predictions, and the mean KL(teacher || student) in nats."""
        return {"agreement": self.num_equal / self.count, "kl": self.kl / self.count}
