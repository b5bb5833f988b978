"""`Examination`: what the checks of one run share."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import ImageSet
from pipeline.data.loader import evenly_spaced, read_batches
from pipeline.models.classifier import Classifier
from pipeline.run import RunConfig
from pipeline.runtime.distributed import DistributedContext

# Test images that the networks classify. So many tell accuracies of 88 and 91 % apart; large images are fewer.
MAX_IMAGES, MIN_IMAGES, MAX_PIXELS = 1000, 200, 10_000_000
# Images of one forward pass.
PASS_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some test images: uint8 `pixels` (N, C, H, W) and `labels` (N,), on the CPU."""

    pixels: Tensor
    labels: Tensor

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Pixels in [0, 1] on `device`, in batches."""
        for batch in torch.split(self.pixels, PASS_IMAGES):
            yield to_unit(batch.to(device))


def draw_sample(images: ImageSet) -> Sample:
    """Evenly spaced images of a set."""
    num_pixels = images.batch([0])[0, 0].numel()
    at_most = min(MAX_IMAGES, max(MIN_IMAGES, MAX_PIXELS // num_pixels))
    indices = evenly_spaced(len(images.labels), at_most)
    batches = [batch.tolist() for batch in torch.split(indices, PASS_IMAGES)]
    return Sample(pixels=torch.cat(list(read_batches(images, batches))), labels=images.labels[indices])


@dataclass
class Examination:
    """A run on this machine, and what the checks so far have loaded.

    `config` becomes the one that runs here: with the former sizes of its set, and without `auto`. `is_ready` is false
    when a check has found that the stages would refuse it, so that their outputs have no identity to compare.
    `networks` are frozen, on the device, by their key; those that cannot be loaded are left out. `logits` (N, K) are
    theirs of the `sample`, with the preparation of the pixels that suits each best.
    """

    config: RunConfig
    context: DistributedContext = field(default_factory=DistributedContext)
    networks: dict[str, Classifier] = field(default_factory=dict)
    sample: Sample | None = None
    logits: dict[str, Tensor] = field(default_factory=dict)
    is_ready: bool = True

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return self.context.device

    @property
    def has_trained_teacher(self) -> bool:
        """Whether the teacher has weights: those that the config names, or those that the run has trained."""
        return self.config.teacher.weights is not None or self.config.trained_teacher_path.exists()
