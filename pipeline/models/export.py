"""Exports of a classifier, for programs without dreamdistill: torch.export and ONNX, and how far they are from PyTorch.

Both map pixels in [0, 1] (N, C, H, W), float32, to logits (N, K), for any N; the normalization is inside.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pipeline.models.classifier import Classifier
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.timing import forward_ms

# The version of ONNX's operators that torch.onnx writes without conversion.
OPSET = 18
# The largest difference of two logits that rounding explains.
TOLERANCE = 1e-4
# Images per batch that is compared and timed.
BATCH = 64
# Packages of the extra `onnx`: the format, its writer, and its reader.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An exported file beside PyTorch.

    `max_difference` is the largest absolute difference of a logit, `forward_ms` the time of a batch of pixels.
    """

    num_bytes: int
    max_difference: float
    forward_ms: float


def trace(classifier: Classifier, pixels: Tensor) -> ExportedProgram:
    """The program of a classifier in evaluation mode, for batches of any size of pixels (N, C, H, W), N at least 2.

    Raises ValueError when PyTorch cannot trace the network.
    """
    assert not classifier.training and len(pixels) > 1, "a size of 1 would be taken for a constant"
    try:
        program = torch.export.export(classifier, (pixels,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # what torch.export raises is not specified
        name = type(classifier.network).__name__
        raise ValueError(f"torch.export cannot trace {name}: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def save_program(path: Path, program: ExportedProgram) -> None:
    """Write a program for `torch.export.load`."""
    buffer = io.BytesIO()  # on a full disk, torch's own writer raises no OSError
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> Network:
    """The network in a file that `save_program` wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about a buffer that it does not write to
        return torch.export.load(path).module()


def missing_onnx_packages() -> list[str]:
    """The packages of the extra `onnx` that are not installed."""
    return [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def save_onnx(path: Path, program: ExportedProgram) -> None:
    """Write a program as ONNX, with the input `pixels` and the output `logits`; raises ValueError when it cannot be."""
    import onnx

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised inside torch's exporter
            converted = torch.onnx.export(
                program,
                input_names=["pixels"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except Exception as error:  # what torch.onnx raises is not specified
        raise ValueError(f"torch.onnx cannot convert the network: {_first_line(error)}") from error
    assert converted is not None
    model = converted.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # the history of the conversion, as large as a small network
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def load_onnx(path: Path) -> Network:
    """The network in an ONNX file, run by onnxruntime on the CPU with the threads of PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


@torch.no_grad()
def compare(
    reference: Classifier, networks: Mapping[Path, Network], pixels: Tensor
) -> tuple[float, dict[str, ExportedFile]]:
    """The milliseconds of the reference, and the comparison of each network, by the name of its file, with it.

    Logits are compared on all pixels (N, C, H, W) in [0, 1], in batches, and on the first image alone. Raises
    ValueError when they differ by more than TOLERANCE.
    """
    batches = [pixels[r.start : r.stop] for r in batch_ranges(len(pixels), BATCH)] + [pixels[:1]]
    expected = torch.cat([reference(batch) for batch in batches])
    reference_ms, *times_ms = forward_ms([reference, *networks.values()], pixels[:BATCH])
    files = {}
    for (path, network), network_ms in zip(networks.items(), times_ms, strict=True):
        difference = (torch.cat([network(batch) for batch in batches]) - expected).abs().max().item()
        if not difference <= TOLERANCE:  # NaN is not
            raise ValueError(
                f"{path.name} differs by {difference:.1e} from PyTorch's logits, more than {TOLERANCE:.0e}; "
                "this export is not kept"
            )
        files[path.name] = ExportedFile(num_bytes=path.stat().st_size, max_difference=difference, forward_ms=network_ms)
    return reference_ms, files
