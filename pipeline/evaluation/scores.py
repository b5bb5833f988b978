"""What the networks say of the pixels that are stored: judged after encoding and decoding, not before."""

from typing import Any

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.evaluation.metrics import top5_hits
from pipeline.models.classifier import Classifier


@torch.no_grad()
def judge(images: Tensor, labels: Tensor, teacher: Classifier, verifier: Classifier | None) -> list[dict[str, Any]]:
    """The evidence of each image of uint8 (N, C, H, W) with labels (N,), both on the networks' device."""
    pixels = to_unit(images)
    columns = _opinion("teacher", teacher, pixels, labels)
    if verifier is not None:
        columns |= _opinion("verifier", verifier, pixels, labels)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _opinion(name: str, network: Classifier, pixels: Tensor, labels: Tensor) -> dict[str, list[Any]]:
    logits = network(pixels).float()
    own = labels[:, None]
    return {
        f"{name}_logit": logits.gather(1, own)[:, 0].tolist(),
        f"{name}_probability": logits.softmax(1).gather(1, own)[:, 0].tolist(),
        f"{name}_prediction": logits.argmax(1).tolist(),
        f"{name}_top1": (logits.argmax(1) == labels).tolist(),
        f"{name}_top5": top5_hits(logits, labels).tolist(),
    }
