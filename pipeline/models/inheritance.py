"""A student that starts from weights of its teacher."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# A student with less in common is another architecture, which these weights would not help.
MIN_SHARE = 0.5


def inherit_weights(
    student: nn.Module, teacher: nn.Module, image_shape: Sequence[int], classes: Tensor | None = None
) -> float:
    """Give the student every tensor that the teacher has under the same name; of wider layers, the main channels.

    `classes` (K,) are the teacher's outputs that the student has, in this order. Images are (C, H, W), `image_shape`.
    Returns the share of the student's values that were taken; the others stay as they are. Raises ValueError when it is
    below a half, and what `narrow` raises.
    """
    state, source = student.state_dict(), copy.deepcopy(teacher)
    if classes is not None:
        _keep_outputs(source, classes, image_shape)
    if any(_is_wider(tensor, state[name]) for name, tensor in source.state_dict().items() if name in state):
        from pipeline.models.narrowing import narrow  # half a second

        narrow(source, {name: len(tensor) for name, tensor in state.items() if tensor.dim()}, image_shape)
    taken = {
        name: tensor.detach()
        for name, tensor in source.state_dict().items()
        if tensor.dim() and name in state and tensor.shape == state[name].shape
    }
    share = _num_values(taken.values()) / _num_values(state.values())
    if share < MIN_SHARE:
        others = [name for name, tensor in state.items() if tensor.dim() and name not in taken]
        raise ValueError(
            f"distill.init: teacher, but only {share:.0%} of the student's values have a counterpart in the teacher "
            f"(none has {others[0]}); use the same architecture with fewer channels or layers, or init: random"
        )
    student.load_state_dict({**state, **taken})
    return share


def _keep_outputs(network: nn.Module, classes: Tensor, image_shape: Sequence[int]) -> None:
    """Leave in the last layer the outputs of `classes` (K,), in this order; raises ValueError if they are not there.

    The last layer is the one that was registered last; the outputs of a random image tell whether that is right.
    """
    name = list(network.state_dict())[-1].rpartition(".")[0]
    layer, device = network.get_submodule(name), next(network.parameters()).device
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    expected = _outputs(network, image)[:, classes.to(device)]
    tensors = [tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.dim()]
    has_outputs = all(len(tensor) > int(classes.max()) for tensor in tensors)
    if has_outputs:
        for tensor in tensors:
            tensor.data = tensor.data[classes.to(device)]
        try:
            has_outputs = torch.allclose(_outputs(network, image), expected, rtol=1e-2, atol=1e-3)
        except RuntimeError:  # shapes that do not fit each other
            has_outputs = False
    if not has_outputs:
        raise ValueError(
            f"distill.init: teacher needs the outputs in the teacher's last layer, which is {name}; use init: random"
        )


@torch.no_grad()
def _outputs(network: nn.Module, image: Tensor) -> Tensor:
    outputs: Tensor = network.eval()(image)
    return outputs


def _num_values(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _is_wider(tensor: Tensor, other: Tensor) -> bool:
    return any(a > b for a, b in zip(tensor.shape, other.shape, strict=False))
