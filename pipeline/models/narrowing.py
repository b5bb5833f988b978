"""Channels taken out of a network, in all layers that they pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch_pruning.dependency import DependencyGraph, Group
from torch_pruning.pruner.function import prune_conv_in_channels, prune_linear_in_channels

# What takes channels out of the weights that read them.
READERS = (prune_conv_in_channels, prune_linear_in_channels)


def narrow(network: nn.Module, sizes: Mapping[str, int], image_shape: Sequence[int]) -> None:
    """Leave in the layers of `network` as many channels as `sizes` tells for the tensors of the same name.

    All layers that a channel passes keep the same channels, those with the highest `channel_scores`. They are followed
    on an image of `image_shape`, (C, H, W) (DepGraph, Fang et al., CVPR 2023, arXiv 2301.12900). Raises ValueError when
    that fails.
    """
    names = {module: name for name, module in network.named_modules()}
    image = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    try:
        graph = DependencyGraph().build_dependency(network.eval().requires_grad_(), image, verbose=False)
        for group in graph.get_all_groups():
            layer = group[0].dep.layer
            size = sizes.get(f"{names[layer]}.weight", len(layer.weight))
            if size < len(layer.weight):
                group.prune(channel_scores(group).topk(len(layer.weight) - size, largest=False).indices.tolist())
    except Exception as error:  # whatever it meets in the code of a user's network
        raise ValueError(
            f"distill.init: teacher, but Torch-Pruning cannot follow the channels of the teacher ({error}); use a "
            "student whose layers are as wide as the teacher's, or init: random"
        ) from error


def channel_scores(group: Group) -> Tensor:
    """The sum of the squared weights that read each channel, (channels,), of the layers of `group` that it passes."""
    scores = torch.zeros(len(group[0].idxs))
    for item in group:
        if item.dep.pruning_fn in READERS:
            weight = item.dep.layer.weight.detach().cpu()
            num_groups = getattr(item.dep.layer, "groups", 1)
            read = weight.square().view(num_groups, len(weight) // num_groups, weight.shape[1], -1).sum((1, 3))
            scores.index_add_(0, torch.tensor(item.root_idxs), read.flatten()[item.idxs])
    return scores
