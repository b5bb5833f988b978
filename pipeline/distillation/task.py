"""What is trained: a network on a loss, as one module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.distillation.losses import distillation_loss, label_loss
from pipeline.models.classifier import Classifier
from pipeline.runtime.compiler import compiled

# Loss of (logits (N, K), the view the student saw (N, C, H, W), its class probabilities (N, K)).
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class Task(nn.Module):
    """What is learnt: `classifier` on an objective, as one module, so that DistributedDataParallel sees every pass.

    Batches and views are drawn for (seed, purpose, step). What is compiled lives as long as the task.
    """

    def __init__(
        self,
        classifier: Classifier,
        objective: Objective,
        config: TrainingConfig,
        *,
        num_classes: int,
        seed: int,
        purpose: str,
    ) -> None:
        super().__init__()
        assert "auto" not in (config.precision, config.compile), "decided by `acceleration.resolved`"
        self.classifier, self.num_classes, self.seed, self.purpose = classifier, num_classes, seed, purpose
        self._objective, self._precision = objective, config.precision
        self._loss = compiled(self._eager_loss, classifier.mean.device) if config.compile else self._eager_loss

    def forward(self, view: Tensor, targets: Tensor) -> Tensor:
        """The loss of views (N, C, H, W) with class probabilities (N, K)."""
        return self._loss(view, targets)

    def _eager_loss(self, view: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            return self._objective(self.classifier(view), view, targets)


def label_objective(config: TrainingConfig) -> Objective:
    """Cross-entropy with the labels: how a teacher is trained."""
    return lambda logits, view, targets: label_loss(logits, targets, config.label_smoothing)


def distillation_objective(teacher: Classifier, config: DistillConfig) -> Objective:
    """The frozen teacher's logits of the same view that the student saw, and optionally the labels."""

    def loss(logits: Tensor, view: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(view)
        total = distillation_loss(logits, teacher_logits, config.temperature)
        if config.label_weight:
            total = total + config.label_weight * label_loss(logits, targets, config.label_smoothing)
        return total

    return loss
