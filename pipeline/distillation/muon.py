"""Muon, an optimizer whose updates of matrices are orthogonal."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# The momentum that SGD has here, too.
MOMENTUM = 0.9
# Adam's constants (Kingma and Ba, 2015, arXiv 1412.6980).
BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
# The root mean square of AdamW's updates in practice (Liu et al., 2025, arXiv 2502.16982, section 2.2).
RMS_OF_ADAMW = 0.2
# Coefficients of the iteration, and how often it runs (Jordan et al., 2024, kellerjordan.github.io/posts/muon).
COEFFICIENTS, NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# The least norm that a matrix is divided by.
LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for weights that read several channels, AdamW for all other parameters, at one learning rate.

    Weights (M, C, ...) with C > 1 are taken as a matrix (M, N). Its update approximates the nearest semi-orthogonal
    matrix to the momentum with Nesterov's method (Jordan et al., 2024), and has the size of AdamW's updates (Liu et
    al., 2025, arXiv 2502.16982). Filters of depthwise convolutions are no matrix: they would be mixed. Unlike the
    authors, this gives the first layer and the classifier no optimizer of their own. PyTorch's Muon takes no
    convolutions.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    # PyTorch's signature also returns the loss of a closure, which first-order training never gives.
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; takes no closure."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            self._update_matrices([p for p in parameters if _is_matrix(p)], group["lr"], group["weight_decay"])
            self._update_others([p for p in parameters if not _is_matrix(p)], group["lr"], group["weight_decay"])

    def _update_matrices(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients, momenta = [_gradient(p) for p in parameters], [self.state[p]["momentum"] for p in parameters]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        updates = _orthogonal_updates(torch._foreach_add(gradients, momenta, alpha=MOMENTUM))
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-lr)

    def _update_others(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
                )
        means, squares, steps = ([self.state[p][name] for p in parameters] for name in ("mean", "square", "step"))
        adamw(
            parameters, [_gradient(p) for p in parameters], means, squares, [], steps, foreach=True, amsgrad=False,
            beta1=BETAS[0], beta2=BETAS[1], lr=lr, weight_decay=weight_decay, eps=ADAM_EPS, maximize=False,
        )  # fmt: skip


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() > 1 and parameter.shape[1] > 1


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _orthogonal_updates(momenta: Sequence[Tensor]) -> list[Tensor]:
    """The updates for momenta (M, C, ...); a semi-orthogonal matrix (M, N) has an RMS of 1 / sqrt(max(M, N)).

    Matrices of one shape are multiplied together, which needs far fewer launches on a GPU.
    """
    indices = defaultdict(list)
    for index, momentum in enumerate(momenta):
        indices[momentum.shape].append(index)
    updates = list(momenta)
    for shape, same_shape in indices.items():
        matrices = torch.stack([momenta[index].flatten(1) for index in same_shape])
        scale = RMS_OF_ADAMW * max(matrices.shape[1:]) ** 0.5
        for index, update in zip(same_shape, orthogonalized(matrices).mul(scale).contiguous(), strict=True):
            updates[index] = update.view(shape)
    return updates


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (B, M, N) with their singular values brought to between about 0.7 and 1.2, by matrix products alone.

    A Newton-Schulz iteration of order five, whose coefficients raise small singular values fast (Jordan et al., 2024).
    Those below 0.0015 of the matrix's norm stay smaller, and those that are 0 stay 0.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    result: Tensor = wide / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.mT if is_tall else result
