"""The operations and bytes of the steps of a full-size run, counted without a GPU, and what follows for H100 GPUs.

    python -m benchmarks.full_size                     configs/imagenet_resnet50.yaml

A step is the forward and backward pass of a batch in bfloat16: of inversion in each phase, and of distillation.

Uncompiled, it runs on fake tensors, which have shapes and no values, so a batch of any size is counted on any machine.
A multiplication and an addition are two operations. Bytes moved are the inputs and outputs of all operations, as if
nothing stayed in a cache. The peak is the most bytes of tensors at a time.

For the compiled step, PyTorch's compiler tells what it fuses, hence the bytes that its kernels move, and those that are
saved for the backward pass; nothing is built or run.

The input of a convolution with frozen weights, which its backward pass does not read, is not counted there. Views,
optimizer and clamping are left out. Writes results/full_size.json.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import REPOSITORY, add_overrides, make_parser, open_benchmark, print_result
from pipeline.data.views import scaled_size
from pipeline.distillation.task import Task, build_distillation_loss
from pipeline.models.classifier import Classifier, build_classifier
from pipeline.run import RunConfig, load_run
from pipeline.runtime.ranges import batch_ranges, even_ranges
from pipeline.synthesis.objective import Networks, open_objective

CONFIG = REPOSITORY / "configs" / "imagenet_resnet50.yaml"
BACKWARD = torch.ops.aten.convolution_backward.default
# A view whose result is not marked as one.
UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
NUM_GPUS = (1, 8)
# Share of the memory of a device that tensors may take, as in pipeline/synthesis/memory.py.
USABLE_MEMORY = 0.9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Rates of a device, per second, and its memory in bytes.

    `assumed_share` is the assumption of the forecast: a step reaches this share of the rate that bounds it.
    """

    name: str
    flops: float
    bytes_moved: float
    memory_bytes: float
    assumed_share: float


# NVIDIA's data sheet: dense bfloat16, HBM3. The share is not measured.
H100 = Gpu(name="H100 SXM", flops=989e12, bytes_moved=3.35e12, memory_bytes=80e9, assumed_share=0.5)

# A function to the loss, and its inputs, images first.
Function = Callable[..., Any]
Step = tuple[Function, list[Tensor]]


class ByteCounter(TorchDispatchMode):
    """The bytes that the operations of a `with` block move, and the most bytes of tensors at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_moved = self.peak_bytes = self._live_bytes = 0
        self._storages: set[int] = set()

    def track(self, tensors: Sequence[Tensor]) -> None:
        """Count the storages of `tensors` as live until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                self._storages.add(storage._cdata)
                self._live_bytes += storage.nbytes()
                finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def _free(self, key: int, num_bytes: int) -> None:
        self._storages.discard(key)
        self._live_bytes -= num_bytes

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Call the operation and count it; views, and questions about a tensor, move nothing."""
        outputs = function(*arguments, **(keywords or {}))
        written = _tensors(outputs)
        if written and not function.is_view and function is not UNSAFE_VIEW:
            read = _tensors((arguments, keywords))
            self.bytes_moved += sum(map(num_bytes, [*read, *written])) - _unread_bytes(function, arguments)
        self.track(written)
        return outputs


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def num_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor's values; of an expanded one, those that exist."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _unread_bytes(function: Any, arguments: Sequence[Any]) -> int:
    """The input of a convolution with frozen weights, which its backward pass does not read."""
    return num_bytes(arguments[1]) if function is BACKWARD and not arguments[-1][1] else 0


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What one step of `batch_size` images needs, compiled and, as `eager_...`, uncompiled."""

    batch_size: int
    flops: int
    eager_bytes_moved: int
    eager_peak_bytes: int
    bytes_moved: int
    saved_bytes: int

    def largest_batch(self, gpu: Gpu) -> int:
        """The batch whose peak, uncompiled, fits the memory of a device; all of the peak is taken to grow with it."""
        return int(USABLE_MEMORY * gpu.memory_bytes * self.batch_size / self.eager_peak_bytes)


def measure_step(open_step: Callable[[], AbstractContextManager[Step]]) -> StepSize:
    """The size of a step."""
    with FakeTensorMode(), ByteCounter() as counter, open_step() as (function, inputs):
        counter.bytes_moved = 0  # of building the networks
        with FlopCounterMode(display=False) as flop_counter:
            function(*inputs).backward()
    with open_step() as (function, inputs):
        moved, saved = count_compiled(function, inputs)
    return StepSize(
        batch_size=len(inputs[0]),
        flops=int(flop_counter.get_total_flops()),
        eager_bytes_moved=counter.bytes_moved,
        eager_peak_bytes=counter.peak_bytes,
        bytes_moved=moved,
        saved_bytes=saved,
    )


class _CountedError(Exception):
    """Raised in place of running the compiled step."""


def count_compiled(function: Function, inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes that the compiled forward and backward pass move, and bytes saved between them; neither is run."""
    import torch._functorch.config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    graphs: list[torch.fx.GraphModule] = []
    moved: list[int] = []

    def count(graph: torch.fx.GraphModule, examples: Sequence[Any], **options: Any) -> Any:
        graphs.append(graph)
        unread = sum(
            _unread_bytes(node.target, [_value(argument) for argument in node.args]) for node in graph.graph.nodes
        )
        moved.append(_fused_bytes(graph, examples, is_backward=bool(options.get("is_backward"))) - unread)

        def run(arguments: list[Any]) -> Any:
            raise _CountedError

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    torch._dynamo.reset()
    # Both graphs are made at the first call, not the second one in the backward pass.
    with suppress(_CountedError), functorch_config.patch(force_non_lazy_backward_lowering=True):
        torch.compile(function, backend=partial(compile_fx, inner_compile=count), dynamic=False)(*inputs)
    forward, _ = graphs
    (outputs,) = forward.graph.output_node().args
    saved = {node for node in tree_leaves(outputs) if isinstance(node, torch.fx.Node) and node.op != "placeholder"}
    return sum(moved), sum(num_bytes(_value(node)) for node in saved if isinstance(_value(node), Tensor))


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def _fused_bytes(graph: torch.fx.GraphModule, examples: Sequence[Any], *, is_backward: bool) -> int:
    """The bytes that the kernels of a graph read and write, after the compiler has fused its operations."""
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import record_original_output_strides
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    record_original_output_strides(graph)
    mode = detect_fake_mode(examples)
    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        post_grad_passes(graph, is_inference=False)
        lowering = GraphLowering(graph, shape_env=mode.shape_env, is_backward=is_backward)
        with V.set_graph_handler(lowering):
            lowering.run(*examples)
            lowering._update_scheduler()
            return int(lowering.count_bytes()[0])


@contextmanager
def open_inversion(config: RunConfig, scale: float) -> Iterator[Step]:
    """The step of inversion in a phase of `scale`."""
    inversion = replace(config.synthesis.inversion, precision="bfloat16", compile=False, cuda_graphs=False)
    height, width = scaled_size(inversion.view_scale, scaled_size(scale, config.images.size))
    labels = torch.zeros(config.synthesis.batch_size, dtype=torch.long)
    view = torch.zeros(len(labels), config.images.channels, height, width, requires_grad=True)
    classes = None if config.class_labels is None else torch.tensor(config.class_labels)
    networks = Networks(teacher=_teacher(config), classes=classes)
    with open_objective(networks, inversion, config.images.size) as objective:
        yield lambda view, labels: objective.loss(view, labels)[0], [view, labels]


@contextmanager
def open_distillation(config: RunConfig) -> Iterator[Step]:
    """The step of distillation of a batch on one device."""
    distill = replace(config.distill, precision="bfloat16", compile=False, cuda_graphs=False)
    student = build_classifier(replace(config.student, weights=None), config.student_images).train()
    task = Task(
        student,
        build_distillation_loss(_teacher(config, config.class_labels), distill),
        distill,
        config.seed,
        "distill",
    )
    height, width = scaled_size(distill.augment.view_scale, config.images.size)
    view = torch.zeros(distill.batch_size, config.images.channels, height, width)
    yield task.forward, [view, torch.zeros(distill.batch_size, student.num_classes)]


def _teacher(config: RunConfig, classes: Sequence[int] | None = None) -> Classifier:
    teacher = build_classifier(replace(config.teacher, weights=None), config.images).freeze()
    if classes is not None:
        teacher.classes = torch.tensor(classes)
    return teacher


def forecast(config: RunConfig, sizes: Mapping[str, StepSize], gpu: Gpu, num_gpus: int) -> dict[str, Any]:
    """Hours of each stage: the least by arithmetic, the least by bytes moved, and at the assumed share of the rate."""
    synthesis = config.synthesis
    rounds = even_ranges(synthesis.num_images, synthesis.rounds)
    num_batches = sum(-(-len(batch_ranges(len(images), synthesis.batch_size)) // num_gpus) for images in rounds)
    steps = {
        "synthesize": [(sizes[f"inversion_{p.scale:g}"], p.steps * num_batches) for p in synthesis.inversion.phases]
    }
    # Devices share the batch of distillation.
    steps["distill"] = [(sizes["distillation"], config.distill.steps / num_gpus)]
    stages = {stage: _hours(counted, gpu) for stage, counted in steps.items()}
    return {"num_gpus": num_gpus, **stages, "total_h": sum(hours["assumed_h"] for hours in stages.values())}


def _hours(steps: Sequence[tuple[StepSize, float]], gpu: Gpu) -> dict[str, float]:
    arithmetic_h, memory_h = (
        [count * amount / rate / 3600 for amount, count in amounts]
        for rate, amounts in (
            (gpu.flops, [(size.flops, count) for size, count in steps]),
            (gpu.bytes_moved, [(size.bytes_moved, count) for size, count in steps]),
        )
    )
    bound_h = sum(map(max, arithmetic_h, memory_h))
    return {
        "arithmetic_h": sum(arithmetic_h),
        "memory_h": sum(memory_h),
        "assumed_h": bound_h / gpu.assumed_share,
    }


def measure(config: RunConfig) -> dict[str, Any]:
    """The sizes of all steps, the batches that fit, the cached images, and the forecasts."""
    scales = sorted({phase.scale for phase in config.synthesis.inversion.phases})
    sizes = {f"inversion_{scale:g}": measure_step(partial(open_inversion, config, scale)) for scale in scales}
    sizes["distillation"] = measure_step(partial(open_distillation, config))
    return {
        "gpu": asdict(H100),
        "steps": {name: asdict(size) for name, size in sizes.items()},
        "largest_batch": {name: size.largest_batch(H100) for name, size in sizes.items()},
        "cached_images_bytes": config.synthesis.num_images * math.prod(config.images.shape),
        "forecast": [forecast(config, sizes, H100, num_gpus) for num_gpus in NUM_GPUS],
    }


def main() -> None:
    """Count, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="the YAML file of the run")
    add_overrides(parser)
    arguments = parser.parse_args()
    with open_benchmark() as context:
        config = load_run(arguments.config, arguments.set)
        options = {"command": "python -m benchmarks.full_size", "config": arguments.config.stem, "set": arguments.set}
        print_result("full_size", {**options, **measure(config)}, context)


if __name__ == "__main__":
    main()
