"""Muon, an optimizer whose updates of matrices are orthogonal."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM, SECOND_MOMENTUM, EPS = 0.9, 0.999, 1e-8
# The size of an element of an update, as AdamW's is in practice (Liu et al., 2025, arXiv 2502.16982, section 2.2).
RMS_OF_ADAMW = 0.2
# Coefficients of the iteration, and how often it runs (Jordan et al., 2024, kellerjordan.github.io/posts/muon).
COEFFICIENTS, NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions and more, Adam for the others, at one learning rate.

    The weights of a layer (O, ...) are a matrix (O, the product of the rest). Its update is the nearest orthogonal
    matrix to the momentum with Nesterov's method (Jordan et al., 2024), scaled so that AdamW's learning rates and
    weight decays fit (Liu et al., 2025, arXiv 2502.16982). PyTorch's own Muon takes no weights of convolutions.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._matrix_update if parameter.dim() > 1 else self._vector_update
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(group["lr"] * update(parameter.grad, self.state[parameter]))

    @staticmethod
    def _matrix_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        momentum.mul_(MOMENTUM).add_(gradient)
        matrix = gradient.add(momentum, alpha=MOMENTUM).flatten(1)
        scale = RMS_OF_ADAMW * max(matrix.shape) ** 0.5
        return orthogonalized(matrix).mul_(scale).view(gradient.shape)

    @staticmethod
    def _vector_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        step = state["step"] = state.get("step", 0) + 1
        first: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
        second: Tensor = state.setdefault("second_momentum", torch.zeros_like(gradient))
        first.lerp_(gradient, 1 - MOMENTUM)
        second.lerp_(gradient.square(), 1 - SECOND_MOMENTUM)
        deviation = (second / (1 - SECOND_MOMENTUM**step)).sqrt() + EPS
        return first.div(1 - MOMENTUM**step).div(deviation)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix (M, N) with its singular values brought near 1 (between about 0.7 and 1.2), by matrix products alone.

    A Newton-Schulz iteration of order five, whose coefficients raise small singular values fast (Jordan et al., 2024).
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    result: Tensor = (matrix.T if is_tall else matrix) / matrix.norm().clamp(min=EPS)
    for _ in range(NUM_ITERATIONS):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if is_tall else result
