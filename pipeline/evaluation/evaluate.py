"""Evaluation of a student beside its teacher on real images, each image once."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import read_batches
from pipeline.evaluation.metrics import Agreement, ClassificationMetrics
from pipeline.evaluation.set_quality import QualityConfig
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import ConfigError
from pipeline.runtime.form import Form, check_form
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.text import is_printable
from pipeline.runtime.timing import forward_ms

# The most images in the timed forward pass.
TIMED_IMAGES = 64


SHARE_OR_NONE = (float, type(None))
NETWORK_FORM: Form = {
    **dict.fromkeys(("top1", "top5", "nll", "calibration_error", "forward_ms"), float),
    "parameters": int,
    "per_class_top1": [SHARE_OR_NONE],
    "confusion": [[int]],
    "calibration_bins": {"num_images": [int], "confidence": [SHARE_OR_NONE], "top1": [SHARE_OR_NONE]},
}
EVALUATION_FORM = {
    **dict.fromkeys(("num_images", "timed_batch"), int),
    **dict.fromkeys(("agreement", "kl", "accuracy_retention"), float),
    **dict.fromkeys(("student", "teacher"), NETWORK_FORM),
    "class_titles": [str],
    "line": str,
}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the student is scored beside its teacher.

    Attributes:
        batch_size: Images per forward pass, at least 1. It changes memory and time, not the scores.
        quality: How the synthetic images are scored by `make quality`.
    """

    batch_size: int = 500
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: {self.batch_size} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The metrics of `student` and `teacher`, as `ClassificationMetrics.summary` returns them, and of the two together.

    `accuracy_retention` is the student's top-1 divided by the teacher's. `forward_ms` is the time of one batch of
    `timed_batch` images.
    """

    num_images: int
    student: dict[str, Any]
    teacher: dict[str, Any]
    agreement: float
    kl: float
    accuracy_retention: float
    timed_batch: int

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Self:
        """The report in the content of an evaluation's file, which holds its fields."""
        return cls(**{name: stated[name] for name in cls.__dataclass_fields__})

    def row(self) -> dict[str, float]:
        """The scalar metrics under flat names, for a CSV line."""
        flat: dict[str, float] = {"num_images": self.num_images}
        for name in ("student", "teacher"):
            metrics = getattr(self, name)
            flat |= {f"{name}_{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        return flat | {"agreement": self.agreement, "kl": self.kl, "accuracy_retention": self.accuracy_retention}

    def line(self) -> str:
        """The main metrics in one line."""
        student, teacher = self.student, self.teacher
        return (
            f"student top-1 {student['top1']:.2%}, teacher {teacher['top1']:.2%} on {self.num_images} real images; "
            f"accuracy retention {self.accuracy_retention:.1%}, agreement {self.agreement:.2%}, "
            f"{student['parameters']:,} parameters, teacher {teacher['parameters']:,}"
        )


def evaluation_csv(name: str, round_index: int, report: EvalReport) -> str:
    """The metrics of a run's round as a table of one line."""
    row = {"run": name, "round": round_index, **report.row()}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, row)
    writer.writeheader()
    writer.writerow(row)
    return buffer.getvalue()


@torch.no_grad()
def measure(network: Classifier, images: ImageSet, config: EvaluationConfig) -> dict[str, Any]:
    """The `ClassificationMetrics.summary` of one network over all images and classes; sets evaluation mode.

    Raises FloatingPointError when a logit is not finite.
    """
    metrics = ClassificationMetrics(network.num_classes, network.device)
    network.eval()
    for indices, pixels, labels in _batches(images, config.batch_size, network.device):
        logits = network(pixels)
        _require_finite(logits, "network", indices)
        metrics.add(logits, labels)
    return metrics.summary()


def _batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Every image once: the indices of a batch, its pixels (N, C, H, W) in [0, 1], and its labels (N,)."""
    ranges = batch_ranges(len(images.labels), batch_size)
    for indices, batch in zip(ranges, read_batches(images, ranges), strict=True):
        yield indices, to_unit(batch.to(device)), images.labels[indices.start : indices.stop].to(device)


def _require_finite(logits: Tensor, name: str, indices: range) -> None:
    if not torch.isfinite(logits).all():
        raise FloatingPointError(
            f"evaluation: the {name}'s logits are not finite on images {indices.start} to {indices.stop - 1}; train it "
            "with a lower lr"
        )


@torch.no_grad()
def evaluate(
    student: Classifier,
    teacher: Classifier,
    images: ImageSet,
    config: EvaluationConfig,
    on_batch: Callable[[int], None] | None = None,
) -> EvalReport:
    """The metrics of both networks, on one device, over all images; `on_batch` gets the number of images done.

    Raises FloatingPointError when a logit is not finite.
    """
    networks, device = {"student": student.eval(), "teacher": teacher.eval()}, teacher.device
    metrics = {name: ClassificationMetrics(teacher.num_classes, device) for name in networks}
    agreement = Agreement()
    for indices, pixels, labels in _batches(images, config.batch_size, device):
        logits = {name: network(pixels) for name, network in networks.items()}
        for name in networks:
            _require_finite(logits[name], name, indices)
            metrics[name].add(logits[name], labels)
        agreement.add(logits["student"], logits["teacher"])
        if on_batch:
            on_batch(indices.stop)
    timed_pixels = pixels[:TIMED_IMAGES]
    times_ms = forward_ms(list(networks.values()), timed_pixels)
    summaries = {
        name: {**metrics[name].summary(), "parameters": network.num_parameters, "forward_ms": forward_ms}
        for (name, network), forward_ms in zip(networks.items(), times_ms, strict=True)
    }
    return EvalReport(
        num_images=len(images.labels),
        student=summaries["student"],
        teacher=summaries["teacher"],
        **agreement.summary(),
        accuracy_retention=_ratio(summaries["student"]["top1"], summaries["teacher"]["top1"]),
        timed_batch=len(timed_pixels),
    )


def check_evaluation(evaluation: Any) -> None:
    """Raise ValueError, saying what is wrong, unless plain data is an evaluation: an `EvalReport` with titles."""
    check_form(evaluation, EVALUATION_FORM)
    if not all(map(is_printable, evaluation["class_titles"])):
        raise ValueError("class_titles has control characters")
    num_classes = len(evaluation["class_titles"])
    for name in ("student", "teacher"):
        network = evaluation[name]
        by_class = (network["per_class_top1"], network["confusion"], *network["confusion"])
        if num_classes < 1 or any(len(values) != num_classes for values in by_class):
            raise ValueError(f"{name} has not one value for each of the {num_classes} classes")
        if len({len(network["calibration_bins"][key]) for key in NETWORK_FORM["calibration_bins"]}) > 1:
            raise ValueError(f"{name}.calibration_bins has lists of different lengths")
        if not (network["parameters"] > 0 and network["forward_ms"] > 0):
            raise ValueError(f"{name} has no parameters, or takes no time")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
