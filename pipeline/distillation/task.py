"""`Task`: a classifier, its loss, and the batches and views that it is trained on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.codec import to_unit
from pipeline.data.loader import draw_batch
from pipeline.data.views import augment
from pipeline.distillation.config import DistillConfig, TrainingConfig
from pipeline.distillation.feature_matching import FeatureMatching, ViewShape, open_feature_matching
from pipeline.distillation.losses import distillation_loss, label_loss
from pipeline.models.classifier import Classifier
from pipeline.runtime.acceleration import accelerated
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import derive_seed, make_generator

# Loss of (logits (N, K), the view the network saw (N, C, H, W), its class probabilities (N, K)).
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


class Task(nn.Module):
    """The training of `classifier` on a loss, as one module, so that DistributedDataParallel sees every pass.

    Batches and views are drawn for (seed, purpose, step). The compiled step lives as long as the task.
    """

    def __init__(
        self, classifier: Classifier, loss_function: LossFunction, config: TrainingConfig, seed: int, purpose: str
    ) -> None:
        super().__init__()
        self.classifier, self.config, self.seed, self.purpose = classifier, config, seed, purpose
        self._loss_function = loss_function
        self._loss = accelerated(self._eager_loss, config, classifier.device)

    def forward(self, view: Tensor, targets: Tensor) -> Tensor:
        """The loss of views (N, C, H, W) with class probabilities (N, K)."""
        return self._loss(view, targets)

    def _eager_loss(self, view: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return self._loss_function(self.classifier(view), view, targets)

    def share(self, num_images: int, step: int, context: DistributedContext) -> Tensor:
        """Indices of this rank's share of the batch of a step."""
        batch = draw_batch(num_images, self.config.batch_size, self.seed, f"{self.purpose}/order", step)
        return batch[context.rank :: context.size]

    def view(self, pixels: Tensor, labels: Tensor, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """An augmented view of uint8 pixels (N, C, H, W), and class probabilities (N, K) for labels (N,).

        It also seeds the layers of the step, such as dropout, which take no generator.
        """
        purpose = f"{self.purpose}/{rank}"
        targets = F.one_hot(labels, self.classifier.num_classes).float()
        generator = make_generator(self.seed, purpose, step)
        augmented = augment(to_unit(pixels), targets, self.config.augment, generator)
        torch.manual_seed(derive_seed(self.seed, f"{purpose}/layers", step))
        return augmented


def build_label_loss(config: TrainingConfig) -> LossFunction:
    """Cross-entropy with the labels, for a teacher."""
    return lambda logits, view, targets: label_loss(logits, targets, config.label_smoothing)


def build_distillation_loss(
    teacher: Classifier, config: DistillConfig, features: FeatureMatching | None = None
) -> LossFunction:
    """The divergence from the frozen teacher's logits of the same view, plus the weighted label and feature losses.

    `features` compares `teacher` with the student, whose last pass was that of the logits.
    """

    def loss(logits: Tensor, view: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(view)
        total = distillation_loss(logits, teacher_logits, config.temperature)
        if config.label_weight:
            total = total + config.label_weight * label_loss(logits, targets, config.label_smoothing)
        if features is not None:
            total = total + config.feature_weight * features.loss()
        return total

    return loss


@contextmanager
def open_distillation(
    student: Classifier, teacher: Classifier, config: DistillConfig, views: ViewShape, seed: int
) -> Iterator[Task]:
    """The distillation on views (N, C, H, W), the share of a batch of this process.

    The hooks on both networks are removed when the block ends.

    With `feature_weight`, no other pass of the teacher may run meanwhile. Raises what `matched_stages` raises.
    """
    with ExitStack() as hooks:
        features = None
        if config.feature_weight:
            features = hooks.enter_context(open_feature_matching(student, teacher, views))
        yield Task(student, build_distillation_loss(teacher, config, features), config, seed, "distill")
