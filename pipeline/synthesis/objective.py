"""The objective of inversion: the weighted loss of the teacher's response to a batch of inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.models.classifier import Classifier
from pipeline.runtime.compiler import compiled
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.inputs import to_pixels
from pipeline.synthesis.statistics import LayerStatistics, capture_statistics
from pipeline.synthesis.terms import View, build_terms, weighted_sum


class Objective:
    """The weighted loss of a view, with the teacher's hooks in place; made by `open_objective`."""

    def __init__(
        self,
        teacher: Classifier,
        rival: Classifier | None,
        ensemble: Sequence[Classifier],
        config: InversionConfig,
        statistics: list[LayerStatistics],
    ) -> None:
        assert "auto" not in (config.precision, config.compile), "decided by `acceleration.resolved`"
        self.teacher, self.rival, self.ensemble, self.precision = teacher, rival, ensemble, config.precision
        self.terms = build_terms(config.terms, has_rival=rival is not None)
        self._statistics = statistics
        self._loss = self._eager_loss
        if config.compile:
            self._loss = compiled(self._eager_loss, teacher.mean.device, cuda_graphs=config.cuda_graphs)

    def __call__(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The total, and the weighted terms, detached, of shape (T,), of view (N, C, H, W) and labels (N,)."""
        return self._loss(view, labels)

    def _eager_loss(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._statistics.clear()
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            pixels = to_pixels(view)
            logits = self.teacher(pixels)
            rival_logits = None if self.rival is None else self.rival(pixels)
            ensemble_logits = [network(pixels) for network in self.ensemble]
        seen = View(
            images=view,
            logits=logits,
            labels=labels,
            statistics=list(self._statistics),
            ensemble_logits=ensemble_logits,
            rival_logits=rival_logits,
        )
        self._statistics.clear()  # what is left in it would be a result of the compiled step
        total, parts = weighted_sum(self.terms, seen)
        return total, torch.stack(list(parts.values()))


@contextmanager
def open_objective(
    teacher: Classifier, rival: Classifier | None, config: InversionConfig, ensemble: Sequence[Classifier] = ()
) -> Iterator[Objective]:
    """The objective of `invert`, for any number of batches: what is compiled for one serves the others of its size.

    All networks are frozen and on the same device. The teacher's hooks are removed when the block ends.
    """
    with capture_statistics(teacher.network) as statistics:
        yield Objective(teacher, rival, ensemble, config, statistics)


def phase_size(scale: float, height: int, width: int) -> tuple[int, int]:
    """Canvas (height, width) of a phase, at least two pixels, since the variation of one is nothing."""
    return max(2, round(height * scale)), max(2, round(width * scale))
