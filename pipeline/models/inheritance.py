"""A student that starts from evenly spaced weights of its teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# A student with less in common is another architecture, which these weights would not help.
MIN_SHARE = 0.5


def inherit_weights(student: nn.Module, teacher: nn.Module, classes: Tensor | None = None) -> float:
    """Give the student every tensor that the teacher has under the same name, in at least the same size.

    Of a larger tensor it takes evenly spaced entries in each dimension (weight selection, Xu et al., 2024,
    arXiv 2311.18823). In a plain sequence of layers they fit together, since one layer's outputs are spaced as the next
    one's inputs; after concatenations, flattened maps and grouped convolutions they need not. `classes` (K,) are the
    teacher's outputs that the student has, in this order. Returns the share of the student's values that were taken;
    the others stay as they are. Raises ValueError when it is below a half.
    """
    sources, state = _with_classes(teacher.state_dict(), classes), student.state_dict()
    taken = {
        name: _evenly_spaced(sources[name], tensor)
        for name, tensor in state.items()
        if tensor.dim() and name in sources and _fits(tensor, sources[name])
    }
    share = _num_values(taken) / _num_values(state)
    if share < MIN_SHARE:
        others = [name for name in state if name not in taken]
        raise ValueError(
            f"distill.init: teacher, but only {share:.0%} of the student's values have a counterpart in the teacher "
            f"(none has {others[0]}); use the same architecture with fewer channels or layers, or init: random"
        )
    student.load_state_dict({**state, **taken})
    return share


def _with_classes(state: Mapping[str, Tensor], classes: Tensor | None) -> dict[str, Tensor]:
    """The teacher's tensors; of those of its last layer, the rows of `classes`."""
    if classes is None:
        return dict(state)
    layer = list(state)[-1].rpartition(".")[0]
    rows = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] == layer}
    if any(len(tensor) <= int(classes.max()) for tensor in rows.values()):
        raise ValueError(
            f"distill.init: teacher needs the outputs in the teacher's last layer, which is {layer}; use init: random"
        )
    return {**state, **{name: tensor[classes.to(tensor.device)] for name, tensor in rows.items()}}


def _num_values(state: Mapping[str, Tensor]) -> int:
    return sum(int(tensor.numel()) for tensor in state.values())


def _fits(tensor: Tensor, source: Tensor) -> bool:
    return tensor.dim() == source.dim() and all(a <= b for a, b in zip(tensor.shape, source.shape, strict=True))


def _evenly_spaced(source: Tensor, like: Tensor) -> Tensor:
    for dim, (size, source_size) in enumerate(zip(like.shape, source.shape, strict=True)):
        source = source.index_select(dim, torch.arange(size, device=source.device) * source_size // size)
    return source.to(like)
