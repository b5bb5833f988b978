"""What each rank of test_distributed.py does, started with torchrun; each rank writes its results to a file."""

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa
from torch.overrides import TorchFunctionMode

from pipeline.data.image_sets import ArrayImages
from pipeline.distillation.config import TrainingConfig
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import Task, build_label_loss
from pipeline.distillation.train import train
from pipeline.models.classifier import Classifier
from pipeline.runtime.distributed import DistributedContext, open_distributed

NUM_STEPS = 20
# Functions of a tensor that wait for its device.
READING = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__"}


class Network(nn.Module):
    """No BatchNorm, whose statistics of a share differ from those of the batch; one layer takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.unused = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class ReadingSteps(TorchFunctionMode):
    """The steps in which the host reads a tensor, but for draws of views and flags of ranks, which are on the host."""

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        self.state, self.steps = state, set()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = getattr(function, "__name__", "")
        on_host = {"views.py", "distributed.py"}
        is_on_host = any(Path(frame.filename).name in on_host for frame in traceback.extract_stack(limit=6))
        if (name in READING or (name == "to" and "cpu" in arguments)) and not is_on_host:
            self.steps.add(self.state.step)
        return function(*arguments, **(keywords or {}))


def train_network(context: DistributedContext, *, compile: bool = False, log_every: int = 1) -> dict[str, Any]:
    """Train without random views, which differ between ranks; the losses, and the weights before and after."""
    config = TrainingConfig(
        steps=NUM_STEPS, batch_size=12, lr=0.1, log_every=log_every, precision="float32", compile=compile
    )
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(context.rank)  # all ranks must start from the weights of rank 0
        classifier = Classifier(Network(), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), 4)
    start = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    state = TrainState.open(classifier, config, Path("/nonexistent/never written"), {})
    task = Task(classifier, build_label_loss(config), config, 0, "training")
    losses = []
    reading = ReadingSteps(state)

    def run() -> None:
        images = ArrayImages(pixels, torch.arange(48) % 4)
        train(state, task, images, context, lambda step, figures: losses.append(figures["loss"]))

    if compile:
        run()
    else:
        with reading:
            run()
    return {"losses": losses, "start": start, "weights": classifier.state_dict(), "reading": sorted(reading.steps)}


def exchange(context: DistributedContext) -> dict[str, Any]:
    """What this rank gets from each collective operation."""
    results = {
        "broadcast": context.broadcast(f"from rank {context.rank}"),
        "mean": context.mean(torch.tensor([1.0 * context.rank, 5.0])),
    }
    context.require_same("float32", "precision")
    try:
        context.require_same(f"of rank {context.rank}", "precision")
    except ValueError as error:
        results["difference"] = str(error)
    return results


def main(folder: Path, *, compile: bool) -> None:
    """Write the results of this rank to a file in `folder`."""
    with open_distributed() as context:
        if compile:
            cpu_vec_isa.VecISA.check_build = lambda self, code: True  # each check starts a Python that imports torch
            results = {"training": train_network(context, compile=True)}
        else:
            results = {
                "exchange": exchange(context),
                "training": train_network(context),
                "log_every=7": train_network(context, log_every=7),
            }
        torch.save(results, folder / f"{context.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), compile="compile" in sys.argv)
