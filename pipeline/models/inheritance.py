"""A student that starts from evenly spaced weights of its teacher."""

import torch
from torch import Tensor, nn


def inherit_weights(student: nn.Module, teacher: nn.Module, classes: Tensor | None = None) -> float:
    """Give the student every tensor that the teacher has under the same name, in at least the same size.

    Of a larger tensor it takes evenly spaced entries in each dimension (weight selection, Xu et al., 2024,
    arXiv 2311.18823). They fit together from layer to layer, since one layer's outputs are spaced as the next one's
    inputs. `classes` (K,) are the teacher's outputs that the student has, in this order. Returns the share of the
    student's values that were taken; the others stay as they are. Raises ValueError when there are none.
    """
    sources, state = teacher.state_dict(), student.state_dict()
    num_taken, num_values = 0, sum(tensor.numel() for tensor in state.values())
    for name, tensor in state.items():
        source = sources.get(name)
        if source is not None and classes is not None and source.dim() and _is_output(name, teacher):
            source = source[classes.to(source.device)]
        if source is not None and _fits(tensor, source):
            state[name] = _evenly_spaced(source, tensor)
            num_taken += tensor.numel()
    if not num_taken:
        raise ValueError(
            f"distill.init: teacher, but no tensor of the student has a counterpart in the teacher (the first is "
            f"{next(iter(state))}); use the same architecture with fewer channels or layers, or init: random"
        )
    student.load_state_dict(state)
    return float(num_taken / num_values)


def _is_output(name: str, network: nn.Module) -> bool:
    """Whether a tensor belongs to the last layer with weights, which gives one output for each class."""
    return name.rpartition(".")[0] == list(network.state_dict())[-1].rpartition(".")[0]


def _fits(tensor: Tensor, source: Tensor) -> bool:
    return tensor.dim() == source.dim() and all(a <= b for a, b in zip(tensor.shape, source.shape, strict=True))


def _evenly_spaced(source: Tensor, like: Tensor) -> Tensor:
    for dim, (wanted, existing) in enumerate(zip(like.shape, source.shape, strict=True)):
        source = source.index_select(dim, torch.arange(wanted, device=source.device) * existing // wanted)
    return source.to(like)
