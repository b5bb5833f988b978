"""Speed of distillation from preloaded images beside a loop fed by a DataLoader: same networks, images, batch, views.

    python -m benchmarks.distillation          ResNet-20 to ResNet-20 at 32x32, batch 128

The comparison loop is eager and in single precision. It crops and mirrors the images one by one in the processes of the
DataLoader, and reads the loss at every step. Both loops are measured in turn, A B A B. Writes
results/distillation-DEVICE.json, with a label distillation-DEVICE-LABEL.json.
"""

import argparse
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.harness import compared, make_parser, open_benchmark, options_of, print_result, timed
from benchmarks.inversion import NORMALIZATION
from pipeline.data.image_sets import ArrayImages
from pipeline.data.loader import preload
from pipeline.data.views import AugmentConfig
from pipeline.distillation.config import DistillConfig
from pipeline.distillation.losses import distillation_loss
from pipeline.distillation.state import TrainState, build_optimizer
from pipeline.distillation.task import Task, build_distillation_loss
from pipeline.distillation.train import train
from pipeline.models.classifier import Classifier, build_classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.runtime.acceleration import PIXELS_WORTH_COMPILING, resolve_acceleration
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.seeds import make_generator

IMAGES = ImageConfig(channels=3, height=32, width=32, num_classes=10)
NUM_IMAGES, CROP_PADDING_PX, TEMPERATURE, TURNS = 8192, 4, 4.0, 5


class CroppedImages(Dataset[tuple[Tensor, int]]):
    """The images as a DataLoader reads them: one at a time, each with a view of its own."""

    def __init__(self, images: ArrayImages) -> None:
        self.images = images
        self.view = v2.Compose(
            [
                v2.RandomCrop(IMAGES.height, padding=CROP_PADDING_PX),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.view(self.images.pixels[index]), int(self.images.labels[index])


def train_plainly(
    student: Classifier,
    teacher: Classifier,
    loader: "DataLoader[tuple[Tensor, int]]",
    config: DistillConfig,
    num_steps: int,
) -> float:
    """The comparison loop; returns the last loss."""
    optimizer = build_optimizer(student.network, config)
    student.train()
    loss_value, step = math.inf, 0
    while step < num_steps:
        for batch, _ in loader:
            view = batch.to(student.device)
            with torch.no_grad():
                teacher_logits = teacher(view)
            loss = distillation_loss(student(view), teacher_logits, config.temperature)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_value, step = loss.item(), step + 1
            if step == num_steps:
                break
    return loss_value


def make_images() -> ArrayImages:
    """Images of random pixels, on the CPU."""
    pixels = torch.randint(0, 256, (NUM_IMAGES, *IMAGES.shape), generator=make_generator(0, "images")).to(torch.uint8)
    return ArrayImages(pixels, torch.arange(NUM_IMAGES) % IMAGES.num_classes)


def build_config(arguments: argparse.Namespace, context: DistributedContext) -> DistillConfig:
    """The training of all turns, for the options of the command line; `auto` is resolved for this machine."""
    config = DistillConfig(
        steps=(TURNS + 1) * arguments.steps,
        batch_size=arguments.batch_size,
        lr=0.01,
        temperature=TEMPERATURE,
        augment=AugmentConfig(crop_padding_px=CROP_PADDING_PX, flip=True),
        log_every=arguments.steps,
        save_every_s=math.inf,
        optimizer=arguments.optimizer,
        cuda_graphs=arguments.cuda_graphs,
    )
    return resolve_acceleration(config, context.device, PIXELS_WORTH_COMPILING, "the benchmark")


def measure(arguments: argparse.Namespace, context: DistributedContext) -> dict[str, Any]:
    """Images per second of both loops, measured in turn."""
    model = ModelConfig(source=arguments.source, **NORMALIZATION)
    teacher = build_classifier(model, IMAGES, seed=0).to(context.device).freeze()
    student, plain_student = (build_classifier(model, IMAGES, seed=1).to(context.device) for _ in range(2))
    config, images = build_config(arguments, context), make_images()
    loader = DataLoader(
        CroppedImages(images), arguments.batch_size, shuffle=True, num_workers=arguments.num_workers, drop_last=True
    )
    run_plainly = partial(train_plainly, plain_student, teacher, loader, config, arguments.steps)
    task = Task(student, build_distillation_loss(teacher, config), config, 0, "distill")
    preloaded = preload(images, context.device)
    rates: dict[str, list[float]] = {"ours": [], "dataloader": []}
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState.open(student, config, Path(folder) / "student.state", {})
        for turn in range(TURNS + 1):
            state.end = (turn + 1) * arguments.steps
            ours_s, _ = timed(context, train, state, task, preloaded, context)
            plain_s, _ = timed(context, run_plainly)
            if turn:  # the first turn compiles and warms up
                rates["ours"].append(arguments.batch_size * arguments.steps / ours_s)
                rates["dataloader"].append(arguments.batch_size * arguments.steps / plain_s)
    return {
        **options_of(arguments),
        "precision": config.precision,
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        **compared(rates, "images_per_s"),
    }


def main() -> None:
    """Measure on the device of this process."""
    parser = make_parser(__doc__)
    parser.add_argument("--source", default="cifar10:resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--num_workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--optimizer", default="sgd", choices=["sgd", "muon"], help="of both loops")
    parser.add_argument("--cuda_graphs", action="store_true", help="launch the kernels of our step as one graph")
    parser.add_argument("--label", default="", help="in the name of the result, after the device")
    arguments = parser.parse_args()
    with open_benchmark() as context:
        result = measure(arguments, context)
        name = "-".join(filter(None, ("distillation", context.device.type, arguments.label)))
        print_result(name, {"command": "python -m benchmarks.distillation", **result}, context)


if __name__ == "__main__":
    main()
