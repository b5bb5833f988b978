"""Muon, an optimizer whose updates of matrices are orthogonal."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    """Muon for weights that read several channels, Adam for all other parameters, at one learning rate.

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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    is_matrix = parameter.dim() > 1 and parameter.shape[1] > 1
                    update = _orthogonal_update if is_matrix else _adam_update
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update(parameter.grad, self.state[parameter]), alpha=group["lr"])


def _orthogonal_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The update for a gradient (M, C, ...); a semi-orthogonal matrix (M, N) has an RMS of 1 / sqrt(max(M, N))."""
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    state["momentum"].mul_(MOMENTUM).add_(gradient)
    matrix = gradient.add(state["momentum"], alpha=MOMENTUM).flatten(1)
    scale = RMS_OF_ADAMW * max(matrix.shape) ** 0.5
    return orthogonalized(matrix).mul(scale).view(gradient.shape)


def _adam_update(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Adam's update for a gradient of any shape."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    state["mean"].lerp_(gradient, 1 - BETAS[0])
    state["square"].lerp_(gradient.square(), 1 - BETAS[1])
    mean: Tensor = state["mean"] / (1 - BETAS[0] ** state["step"])
    square: Tensor = state["square"] / (1 - BETAS[1] ** state["step"])
    return mean.div(square.sqrt() + ADAM_EPS)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix (M, N) with its singular values brought to between about 0.7 and 1.2, by matrix products alone.

    A Newton-Schulz iteration of order five, whose coefficients raise small singular values fast (Jordan et al., 2024).
    Those below 0.0015 of the matrix's norm stay smaller, and those that are 0 stay 0.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    result: Tensor = (matrix.T if is_tall else matrix) / matrix.norm().clamp(min=LEAST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if is_tall else result
