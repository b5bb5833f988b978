"""Evaluation of a student beside its teacher on real images, every image once."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import read_batches
from pipeline.evaluation.metrics import Likeness, Tally
from pipeline.models.classifier import Classifier
from pipeline.runtime.config import ConfigError
from pipeline.runtime.device import synchronise
from pipeline.runtime.ranges import batch_ranges

# Repetitions of the timed forward pass, of which the median is reported, and images that it takes at most.
TIMED_PASSES, TIMED_IMAGES = 11, 64


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to judge. With `classes`, answers are among these alone, for a student that has learnt no others.

    Accuracy then counts the images of these classes; agreement counts all images. `batch_size` changes memory and
    time, not the figures.
    """

    batch_size: int = 500
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: {self.batch_size} must be at least 1")
        if self.classes is not None and len(set(self.classes)) != max(2, len(self.classes)):
            raise ConfigError(f"classes: {list(self.classes)} must be two or more different classes")


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The figures: `student` and `teacher` as `Tally.summary` gives them, and what compares the two.

    Accuracies are of `num_images`, `agreement` and `kl` of `num_compared`. `recovered` is the student's top-1 over the
    teacher's; `forward_ms` times one batch of `timed_batch` images.
    """

    num_images: int
    num_compared: int
    classes: list[int]
    student: dict[str, Any]
    teacher: dict[str, Any]
    agreement: float
    kl: float
    recovered: float
    timed_batch: int

    def row(self) -> dict[str, float]:
        """The scalar figures under flat names, for a CSV line."""
        flat: dict[str, float] = {"num_images": self.num_images}
        for name in ("student", "teacher"):
            figures = getattr(self, name)
            flat |= {f"{name}_{k}": v for k, v in figures.items() if isinstance(v, int | float)}
        return flat | {"agreement": self.agreement, "kl": self.kl, "recovered": self.recovered}

    def line(self) -> str:
        """One line for a person."""
        student, teacher = self.student, self.teacher
        return (
            f"student top-1 {student['top1']:.2%}, teacher {teacher['top1']:.2%} on {self.num_images} real images; "
            f"recovered {self.recovered:.1%}, agreement {self.agreement:.2%}, "
            f"{student['parameters']:,} of {teacher['parameters']:,} parameters"
        )


@torch.no_grad()
def evaluate(
    student: Classifier,
    teacher: Classifier,
    images: ImageSet,
    num_classes: int,
    config: EvaluationConfig,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> EvalReport:
    """Judge both networks (in evaluation mode, on `device`) on every image; `on_batch` gets the images done so far."""
    student.eval()
    teacher.eval()
    chosen = torch.arange(num_classes) if config.classes is None else torch.tensor(config.classes)
    place = torch.full((num_classes,), -1).index_put_((chosen,), torch.arange(len(chosen))).to(device)
    num_judged = int(torch.isin(images.labels.cpu(), chosen).sum())
    if not num_judged:
        raise ValueError(f"evaluation.classes: there is no test image of the classes {chosen.tolist()}")
    chosen = chosen.to(device)
    tallies = [Tally(len(chosen), device) for _ in range(2)]
    likeness = Likeness()
    ranges = batch_ranges(len(images.labels), config.batch_size)
    for indices, read in zip(ranges, read_batches(images, ranges), strict=True):
        pixels = to_unit(read.to(device))
        labels = place[images.labels[indices.start : indices.stop].to(device)]
        logits = [network(pixels)[:, chosen] for network in (student, teacher)]
        for tally, answer, name in zip(tallies, logits, ("student", "teacher"), strict=True):
            if not torch.isfinite(answer).all():
                raise FloatingPointError(f"evaluation: the {name}'s logits are not finite on {indices}")
            tally.add(answer[labels >= 0], labels[labels >= 0])
        likeness.add(*logits)
        if on_batch:
            on_batch(indices.stop)
    timed = pixels[:TIMED_IMAGES]
    times_ms = _forward_ms(student, teacher, timed)
    figures = [
        {**tally.summary(), "parameters": network.num_parameters, "forward_ms": ms}
        for tally, network, ms in zip(tallies, (student, teacher), times_ms, strict=True)
    ]
    return EvalReport(
        num_images=num_judged,
        num_compared=len(images.labels),
        classes=chosen.tolist(),
        student=figures[0],
        teacher=figures[1],
        **likeness.summary(),
        recovered=figures[0]["top1"] / figures[1]["top1"] if figures[1]["top1"] else 0.0,
        timed_batch=len(timed),
    )


def _forward_ms(student: Classifier, teacher: Classifier, pixels: torch.Tensor) -> list[float]:
    """Median milliseconds of one forward pass of each, measured in turn so that drift hits both."""
    times: list[list[float]] = [[], []]
    for _ in range(TIMED_PASSES + 1):
        for network, taken in zip((student, teacher), times, strict=True):
            synchronise(pixels.device)
            start = time.perf_counter()
            network(pixels)
            synchronise(pixels.device)
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[1:]) for taken in times]  # the first pass warms up
