"""`Objective`: the weighted loss that inversion minimizes, with the hooks on the teacher that it needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.classifier import Classifier
from pipeline.runtime.acceleration import accelerated
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.inputs import to_pixels
from pipeline.synthesis.statistics import LayerStatistics, capture_statistics
from pipeline.synthesis.terms import StepOutputs, build_terms, weighted_sum


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The frozen networks of an objective, all on one device.

    The images of Adaptive DeepInversion are those on which the `student` disagrees with the teacher. The `ensemble`
    takes part in the classification term. `classes` (K,) are the teacher's labels of the labels 0, 1, ... of the
    images, by default the same. The teacher and the ensemble give logits of all their classes, the student of these.
    """

    teacher: Classifier
    student: Classifier | None = None
    ensemble: Sequence[Classifier] = ()
    classes: Tensor | None = None


class Objective:
    """The loss of images of `image_size` (height, width); made by `open_objective`.

    `loss` maps a view (N, C, H, W) and labels (N,) to the total and the weighted terms, detached, of shape (T,).
    """

    def __init__(
        self,
        networks: Networks,
        config: InversionConfig,
        image_size: tuple[int, int],
        statistics: list[LayerStatistics],
    ) -> None:
        self.networks, self.image_size, self.device = networks, image_size, networks.teacher.device
        self.terms = build_terms(config.terms, has_student=networks.student is not None)
        self._statistics, self._precision = statistics, config.precision
        self.loss = accelerated(self._eager_loss, config, self.device)

    def _eager_loss(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        networks, classes = self.networks, self.networks.classes
        self._statistics.clear()  # the hooks may have run outside of a step
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            pixels = to_pixels(view)
            logits = networks.teacher(pixels)
            student_logits = None if networks.student is None else networks.student(pixels)
            ensemble_logits = [network(pixels) for network in networks.ensemble]
        outputs = StepOutputs(
            images=view,
            logits=logits,
            labels=labels if classes is None else classes[labels],
            statistics=list(self._statistics),
            ensemble_logits=ensemble_logits,
            shared_logits=logits if classes is None else logits[:, classes],
            student_logits=student_logits,
        )
        self._statistics.clear()  # the compiled step would return what is left in it
        total, parts = weighted_sum(self.terms, outputs)
        return total, torch.stack(list(parts.values()))


@contextmanager
def open_objective(networks: Networks, config: InversionConfig, image_size: tuple[int, int]) -> Iterator[Objective]:
    """The objective of `invert` for any number of batches; those of one size share the compiled step.

    The hooks on the teacher are removed when the block ends. Raises ValueError for a teacher without BatchNorm.
    """
    with capture_statistics(networks.teacher.network) as statistics:
        yield Objective(networks, config, image_size, statistics)
