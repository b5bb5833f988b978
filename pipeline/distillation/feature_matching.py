"""Feature matching: maps of the student beside those of the teacher, one for each resolution that both have.

As in FitNets (Romero et al., 2015, arXiv 1412.6550), but for all resolutions at once, and without layers to be trained.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier

# Least mean square of a teacher's map that an error is divided by: a map of zeros must not divide by 0.
MIN_MEAN_SQUARE = 1e-6
# What is added to the eigenvalues of the student's channels before they are inverted, as a share of their mean, since
# channels that are zero or equal must not divide by 0.
RIDGE = 1e-3
# Least number of values of a channel in a batch, over the number of the student's channels, to fit these to others:
# with as many channels as values, any map fits any other one.
MIN_VALUES_PER_CHANNEL = 4
# Images that are sent through a network to see its maps; the first dimension of a map is their number.
NUM_TRIED = 2

Shape = tuple[int, int, int]
ViewShape = tuple[int, int, int, int]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a network has its last map (C, H, W) of a resolution: the input or the output of a layer."""

    layer: str
    is_input: bool
    shape: Shape

    @property
    def name(self) -> str:
        """The place in words."""
        return f"the {'input' if self.is_input else 'output'} of {self.layer}"

    @property
    def depth(self) -> int:
        """How many modules the layer lies in."""
        return self.layer.count(".")


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a layer: shapes (C, H, W) of its input and output; None for what is no map that depends on weights."""

    layer: str
    read: Shape | None
    returned: Shape | None


class FeatureMatching:
    """The difference of the two networks' maps in their last pass; made by `open_feature_matching`."""

    def __init__(
        self, student_maps: dict[str, Tensor], teacher_maps: dict[str, Tensor], pairs: Sequence[tuple[Stage, Stage]]
    ) -> None:
        self._student_maps, self._teacher_maps = student_maps, teacher_maps
        self._names = [(student.name, teacher.name) for student, teacher in pairs]

    def loss(self) -> Tensor:
        """The mean of `feature_loss` over the resolutions; forgets the maps.

        Raises ValueError for a layer that the passes have left out.
        """
        for student, teacher in self._names:
            if student not in self._student_maps or teacher not in self._teacher_maps:
                raise ValueError(
                    f"distill.feature_weight: a pass left out {student} of the student or {teacher} of the teacher; "
                    "set it to 0, or give the networks without torch.compile, which skips hooks"
                )
        losses = [feature_loss(self._student_maps[s], self._teacher_maps[t]) for s, t in self._names]
        self._student_maps.clear()  # the compiled step would return what is left in them
        self._teacher_maps.clear()
        return torch.stack(losses).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of the student's map (N, C, H, W) as a share of the square of the teacher's (N, D, H, W).

    If C and D differ, the student's channels are combined linearly, so that they fit the batch best. The gradient takes
    that combination as given: since it minimizes the error, but for the small ridge, its own share of it vanishes.
    """
    student, teacher = student.float(), teacher.float()
    with torch.autocast(student.device.type, enabled=False):
        if student.shape[1] != teacher.shape[1]:
            student = torch.einsum("cd,nchw->ndhw", _combination(student.detach(), teacher), student)
        return (student - teacher).square().mean() / teacher.square().mean().clamp_min(MIN_MEAN_SQUARE)


def _combination(student: Tensor, teacher: Tensor) -> Tensor:
    """The matrix (C, D) that maps the student's channels to the teacher's with the least squared error."""
    inputs, outputs = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
    gram, product = inputs @ inputs.mT, inputs @ outputs.mT
    unit = torch.eye(len(gram), device=gram.device)
    ridge = RIDGE * (gram * unit).sum() / len(gram) + MIN_MEAN_SQUARE
    # Without a check for errors, for which a GPU would have to be waited for; the ridge makes the matrix regular.
    solution: Tensor = torch.linalg.solve_ex(gram + ridge * unit, product)[0]
    return solution


@contextmanager
def open_feature_matching(student: Classifier, teacher: Classifier, views: ViewShape) -> Iterator[FeatureMatching]:
    """The matching of two networks for views (N, C, H, W), the share of a batch of a process.

    The hooks on both networks are removed when the block ends. Raises what `matched_stages` raises.
    """
    pairs = matched_stages(student, teacher, views)
    with (
        _capture(student.network, [pair[0] for pair in pairs]) as student_maps,
        _capture(teacher.network, [pair[1] for pair in pairs]) as teacher_maps,
    ):
        yield FeatureMatching(student_maps, teacher_maps, pairs)


def matched_stages(student: Classifier, teacher: Classifier, views: ViewShape) -> list[tuple[Stage, Stage]]:
    """The stages of the student and of the teacher that are compared, for views (N, C, H, W).

    Raises ValueError when no resolution of their maps is the same, or large enough to fit other channels.
    """
    of_student, of_teacher = (find_stages(network, views[1:]) for network in (student, teacher))
    common = {size: stage for size, stage in of_student.items() if size in of_teacher}
    if not common:
        raise ValueError(
            f"distill.feature_weight: the student has maps of {_sizes(of_student)} pixels, the teacher of "
            f"{_sizes(of_teacher)}, so none can be compared; set it to 0, or choose a student "
            "with a map of one of these sizes"
        )
    pairs = [(stage, of_teacher[size]) for size, stage in common.items()]
    fitted = [pair for pair in pairs if _can_compare(*pair, views[0])]
    if not fitted:
        raise ValueError(
            f"distill.feature_weight: {views[0]} images have too few pixels in maps of {_sizes(common)} to fit the "
            "student's channels to those of the teacher; raise distill.batch_size, or set it to 0"
        )
    return fitted


def _can_compare(student: Stage, teacher: Stage, num_images: int) -> bool:
    channels, height, width = student.shape
    return channels == teacher.shape[0] or num_images * height * width >= MIN_VALUES_PER_CHANNEL * channels


def find_stages(classifier: Classifier, shape: Shape) -> dict[Size, Stage]:
    """The last map of each resolution (H, W), for images `shape` (C, H, W), in the order of the pass.

    It is what the outermost layer reads that leads to the next resolution, such as the second stage of a ResNet, or a
    pool. If no layer averages the maps of the last resolution, it is what the outermost layer that makes such maps
    returns, of several the last. Maps that depend on no weight, such as the image, and single pixels are not counted.
    """
    calls = _try_images(classifier, shape)
    stages: dict[Size, Stage] = {}
    for size, next_size in pairwise([*_resolutions(calls), (1, 1)]):
        outputs = [
            Stage(layer=call.layer, is_input=False, shape=call.returned)
            for call in calls
            if call.returned and call.returned[1:] == size
        ]
        inputs = [
            Stage(layer=call.layer, is_input=True, shape=call.read)
            for call in calls
            if call.read
            and call.returned
            and (call.read[1:], call.returned[1:]) == (size, next_size)
            # A layer inside of one that keeps the resolution leads nowhere.
            and not any(call.layer.startswith(f"{output.layer}.") for output in outputs)
        ]
        if inputs:
            stages[size] = min(inputs, key=lambda stage: stage.depth)
        elif next_size == (1, 1) and outputs:
            stages[size] = min(reversed(outputs), key=lambda stage: stage.depth)
    return stages


def _resolutions(calls: Sequence[_Call]) -> list[Size]:
    """The sizes of maps, each smaller than all before; those of single pixels are left out."""
    sizes: list[Size] = []
    for read, returned in ((call.read, call.returned) for call in calls):
        for _, height, width in filter(None, (read, returned)):
            if height * width > 1 and all(height * width < h * w for h, w in sizes):
                sizes.append((height, width))
    return sizes


def _try_images(classifier: Classifier, shape: Shape) -> list[_Call]:
    """The calls of the layers that are called once, in the order in which they end."""
    calls: list[_Call] = []

    def record(name: str, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(_Call(layer=name, read=_map_shape(inputs[0] if inputs else None), returned=_map_shape(output)))

    images = torch.zeros(NUM_TRIED, *shape, device=classifier.device)
    frozen = [p for p in classifier.parameters() if p.is_floating_point() and not p.requires_grad]
    with ExitStack() as restoring, torch.enable_grad():
        restoring.callback(classifier.train, classifier.training)
        restoring.callback(_set_gradients, frozen, False)
        _set_gradients(frozen, True)
        for name, layer in classifier.network.named_modules():
            restoring.callback(layer.register_forward_hook(partial(record, name)).remove)
        classifier.eval().all_logits(images)
    names = Counter(call.layer for call in calls)
    return [call for call in calls if names[call.layer] == 1]


def _set_gradients(weights: Sequence[nn.Parameter], is_on: bool) -> None:
    for weight in weights:
        weight.requires_grad_(is_on)


def _map_shape(value: object) -> Shape | None:
    """(C, H, W) of a map of all images that depends on weights."""
    if not isinstance(value, Tensor) or value.dim() != 4 or len(value) != NUM_TRIED or not value.requires_grad:
        return None
    return value.shape[1], value.shape[2], value.shape[3]


@contextmanager
def _capture(network: nn.Module, stages: Sequence[Stage]) -> Iterator[dict[str, Tensor]]:
    """Yield the maps of the stages in the last pass, by their names."""
    captured: dict[str, Tensor] = {}

    def record(stage: Stage, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        captured[stage.name] = inputs[0] if output is None else output

    with ExitStack() as hooks:
        for stage in stages:
            layer = network.get_submodule(stage.layer)
            register = layer.register_forward_pre_hook if stage.is_input else layer.register_forward_hook
            hooks.callback(register(partial(record, stage)).remove)
        yield captured


def _sizes(stages: dict[Size, Stage]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in stages) or "no"
