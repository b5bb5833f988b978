"""Feature matching: maps of the student beside those of the teacher, of one layer for each resolution that both have.

As in FitNets (Romero et al., 2015, arXiv 1412.6550), but for all resolutions at once, and without layers to be trained.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier

# Least mean square of a teacher's map that an error is divided by.
LEAST_SQUARE = 1e-6
# What is added to the eigenvalues of the student's channels, relative to their mean, before they are inverted.
RIDGE = 1e-3


class FeatureMatching:
    """The difference of the two networks' maps in their last pass; made by `open_feature_matching`."""

    def __init__(
        self, student_maps: dict[str, Tensor], teacher_maps: dict[str, Tensor], pairs: Sequence[tuple[str, str]]
    ) -> None:
        self._student_maps, self._teacher_maps, self._pairs = student_maps, teacher_maps, pairs

    def loss(self) -> Tensor:
        """The mean of `feature_loss` over the layers; forgets the maps."""
        losses = [feature_loss(self._student_maps[s], self._teacher_maps[t]) for s, t in self._pairs]
        self._student_maps.clear()  # the compiled step would return what is left in them
        self._teacher_maps.clear()
        return torch.stack(losses).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of the student's map (N, C, H, W) as a share of the square of the teacher's (N, D, H, W).

    If C and D differ, the student's channels are combined linearly, so that they fit the batch best. No gradient flows
    through that combination, since it vanishes there: it minimizes the same error.
    """
    student, teacher = student.float(), teacher.float()
    with torch.autocast(student.device.type, enabled=False):
        if student.shape[1] != teacher.shape[1]:
            student = torch.einsum("cd,nchw->ndhw", _combination(student.detach(), teacher), student)
        return (student - teacher).square().mean() / teacher.square().mean().clamp_min(LEAST_SQUARE)


def _combination(student: Tensor, teacher: Tensor) -> Tensor:
    """The matrix (C, D) that maps the student's channels to the teacher's with the least squared error."""
    inputs, outputs = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
    gram, product = inputs @ inputs.mT, inputs @ outputs.mT
    unit = torch.eye(len(gram), device=gram.device)
    ridge = RIDGE * (gram * unit).sum() / len(gram) + LEAST_SQUARE
    # Without a check for errors, for which a GPU would have to be waited for; the ridge makes the matrix regular.
    solution: Tensor = torch.linalg.solve_ex(gram + ridge * unit, product)[0]
    return solution


@contextmanager
def open_feature_matching(
    student: Classifier, teacher: Classifier, shape: tuple[int, int, int]
) -> Iterator[FeatureMatching]:
    """The matching of two networks for views (C, H, W); the hooks on them are removed when the block ends.

    Raises what `matched_layers` raises.
    """
    pairs = matched_layers(student, teacher, shape)
    student_names, teacher_names = zip(*pairs, strict=True)
    with (
        _capture_outputs(student.network, student_names) as student_maps,
        _capture_outputs(teacher.network, teacher_names) as teacher_maps,
    ):
        yield FeatureMatching(student_maps, teacher_maps, pairs)


def matched_layers(student: Classifier, teacher: Classifier, shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    """The layers of the student and of the teacher that are compared, by name, for views (C, H, W).

    Raises ValueError when no resolution of their maps is the same.
    """
    student_layers, teacher_layers = (last_layers(network, shape) for network in (student, teacher))
    pairs = [(name, teacher_layers[size]) for size, name in student_layers.items() if size in teacher_layers]
    if not pairs:
        raise ValueError(
            f"distill.feature_weight: the student has maps of {_sizes(student_layers)} pixels, the teacher of "
            f"{_sizes(teacher_layers)}, so none can be compared; set it to 0"
        )
    return pairs


@torch.no_grad()
def last_layers(classifier: Classifier, shape: tuple[int, int, int]) -> dict[tuple[int, int], str]:
    """The module that finishes each resolution (H, W) for images `shape` (C, H, W), in the order of the pass.

    Of the modules that are called once and whose output is a map of that size, it is the outermost, and of several the
    last: a stage of blocks rather than a layer of a block, such as the first layer of the next stage, which often has
    that size too. Single pixels are not counted.
    """
    calls: list[tuple[str, tuple[int, ...]]] = []

    def record(name: str, module: nn.Module, inputs: object, output: object) -> None:
        calls.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

    layers = classifier.network.named_modules()
    handles = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
    was_training = classifier.training
    try:
        classifier.eval().all_logits(torch.zeros(1, *shape, device=classifier.device))
    finally:
        classifier.train(was_training)
        for handle in handles:
            handle.remove()
    counts = Counter(name for name, _ in calls)
    maps = [(name, shape[2], shape[3]) for name, shape in calls if len(shape) == 4 and counts[name] == 1]
    found: dict[tuple[int, int], str] = {}
    for name, height, width in maps:
        if height * width > 1 and name.count(".") <= found.get((height, width), name).count("."):
            found[height, width] = name
    return found


@contextmanager
def _capture_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of the modules in the last pass, by name."""
    captured: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        captured[name] = output

    handles = [network.get_submodule(name).register_forward_hook(partial(record, name)) for name in names]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _sizes(layers: dict[tuple[int, int], str]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in layers) or "no"
