"""Scores of synthetic images: what the teacher and the verifier predict for the pixels that are stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.evaluation.metrics import top5_hits
from pipeline.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """The frozen networks that score images, on one device; their `classes` are those of the run."""

    teacher: Classifier
    verifier: Classifier | None = None


@torch.no_grad()
def score(images: Tensor, labels: Tensor, scorers: Scorers) -> list[dict[str, Any]]:
    """The scores of each image of uint8 (N, C, H, W) with labels (N,): logit, probability and hits of each network.

    They are among all outputs of a network. In a run of some classes, `top1_among_classes` is among those.
    """
    device = scorers.teacher.device
    pixels, labels = to_unit(images.to(device)), labels.to(device)
    columns = _columns("teacher", scorers.teacher, pixels, labels)
    if scorers.verifier is not None:
        columns |= _columns("verifier", scorers.verifier, pixels, labels)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _columns(name: str, network: Classifier, pixels: Tensor, labels: Tensor) -> dict[str, list[Any]]:
    logits, classes = network.all_logits(pixels).float(), network.classes
    outputs = labels if classes is None else classes[labels]
    own = outputs[:, None]
    among = {} if classes is None else {f"{name}_top1_among_classes": (logits[:, classes].argmax(1) == labels).tolist()}
    return {
        f"{name}_logit": logits.gather(1, own)[:, 0].tolist(),
        f"{name}_probability": logits.softmax(1).gather(1, own)[:, 0].tolist(),
        f"{name}_prediction": logits.argmax(1).tolist(),
        f"{name}_top1": (logits.argmax(1) == outputs).tolist(),
        f"{name}_top5": top5_hits(logits, outputs).tolist(),
        **among,
    }
