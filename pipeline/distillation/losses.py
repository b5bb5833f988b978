"""Losses of training: computed per example, then averaged over the batch."""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, of logits (N, K) (Hinton et al., 2015)."""
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def label_loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of logits (N, K) with class probabilities (N, K), mean over the batch."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
