"""Procedural images, which show nothing, with the labels that a teacher gives them."""

import torch

from pipeline.data.codec import to_unit
from pipeline.data.dead_leaves import dead_leaves
from pipeline.data.image_sets import ArrayImages
from pipeline.models.classifier import Classifier
from pipeline.runtime.seeds import make_generator

# Images that the teacher labels at a time.
BATCH = 256


@torch.no_grad()
def paint_images(teacher: Classifier, count: int, shape: tuple[int, int, int], seed: int) -> ArrayImages:
    """So many dead-leaves images of `shape` (C, H, W), on the CPU, labeled by the frozen teacher."""
    pixels = dead_leaves(count, shape, make_generator(seed, "distill/procedural"))
    labels = [teacher(to_unit(batch.to(teacher.device))).argmax(1).cpu() for batch in torch.split(pixels, BATCH)]
    return ArrayImages(pixels, torch.cat(labels))
