"""Packing, indexing and reading a large dataset: 140,000 JPEG images of 1,000 classes, 224 x 224 pixels.

    python -m benchmarks.shards [--num_images 140000] [--folder FOLDER]

The images are smooth noise, whose JPEG files are as large as those of photographs. Shuffled batches are read, in turn
with the pipeline of webdataset, which reads and decodes the same shards one after the other. Needs 20 GB of disk.
Writes results/shards.json.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset

from benchmarks.harness import compared, make_parser, open_benchmark, print_result, timed
from pipeline.data.codec import encode_image, to_uint8
from pipeline.data.loader import draw_batch, read_batches
from pipeline.data.parts import Sample, write_part
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import pack, remove_parts
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.hardware import peak_memory_bytes
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise, to_pixels

SIZE_PX, NUM_CLASSES, BATCH = 224, 1000, 256
# Different JPEG files; every image is a copy of one of them.
NUM_FILES = 256
# Images in one measurement, and measurements of each reader.
TIMED_IMAGES, TURNS = 4096, 5


def write_parts(folder: Path, num_images: int) -> int:
    """Write parts like those of the synthesize stage; returns their number."""
    shape, config = (NUM_FILES, 3, SIZE_PX, SIZE_PX), InitNoiseConfig(spectrum=1.0, correlation=0.9)
    noise = init_noise(shape, config, make_generator(0, "noise"))
    files = [encode_image(image, "jpeg") for image in to_uint8(to_pixels(noise))]
    ranges = batch_ranges(num_images, BATCH)
    for index, numbers in enumerate(ranges):
        samples = [
            Sample(
                number=number,
                label=number % NUM_CLASSES,
                image=files[number % NUM_FILES],
                metadata={"batch": index, "teacher_top1": True, "teacher_probability": 0.9},
            )
            for number in numbers
        ]
        write_part(folder, index, samples, "jpeg")
    return len(ranges)


def read_ours(images: ShardSet, first_step: int) -> int:
    """Read `TIMED_IMAGES` images in shuffled batches; returns their number."""
    steps = range(first_step, first_step + TIMED_IMAGES // BATCH)
    batches = (draw_batch(len(images), BATCH, 0, "benchmark", step).tolist() for step in steps)
    return sum(len(pixels) for pixels in read_batches(images, batches))


def read_with_webdataset(folder: Path) -> Iterator[int]:
    """Read and decode `TIMED_IMAGES` images at a time with webdataset, in the order of the shards, in batches."""
    paths = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    samples = webdataset.WebDataset(paths, shardshuffle=False).decode("torchrgb8").to_tuple("jpg", "cls")
    num_read = 0
    for pixels, _ in samples.repeat().batched(BATCH):
        num_read += len(pixels)
        if num_read >= TIMED_IMAGES:
            yield num_read
            num_read = 0


def measure(folder: Path, num_images: int, context: DistributedContext) -> dict[str, Any]:
    """Seconds of packing and indexing, peak memory, bytes per image, and the rates of both readers, in turn."""
    facts = {
        "round": 0,
        "teacher": "none",
        "num_classes": NUM_CLASSES,
        "classes": list(range(NUM_CLASSES)),
        "class_titles": [str(label) for label in range(NUM_CLASSES)],
        "shape": [3, SIZE_PX, SIZE_PX],
        "image_format": "jpeg",
        "images_per_shard": 1000,
        "versions": versions(),
    }
    num_parts = write_parts(folder, num_images)
    pack_s, _ = timed(context, pack, folder, range(num_parts), {"benchmark": 0}, facts)
    pack_peak_bytes = peak_memory_bytes(torch.device("cpu"))
    remove_parts(folder)
    index_s, images = timed(context, ShardSet, [folder])
    reads = read_with_webdataset(folder)
    rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
    for turn in range(TURNS + 1):
        ours_s, _ = timed(context, read_ours, images, turn * TIMED_IMAGES // BATCH)
        webdataset_s, _ = timed(context, next, reads)
        if turn:  # the first turn warms up
            rates["ours"].append(TIMED_IMAGES / ours_s)
            rates["webdataset"].append(TIMED_IMAGES / webdataset_s)
    return {
        "num_images": num_images,
        "bytes_per_image": sum(p.stat().st_size for p in (folder / "train").glob("*.tar")) / num_images,
        "pack_s": pack_s,
        "pack_peak_bytes": pack_peak_bytes,
        "index_s": index_s,
        **compared(rates, "images_per_s"),
    }


def main() -> None:
    """Measure in a temporary folder."""
    parser = make_parser(__doc__)
    parser.add_argument("--num_images", type=int, default=140_000)
    parser.add_argument("--folder", type=Path, default=None, help="the parent of the temporary folder")
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments.num_images, context)
        print_result("shards", {"command": "python -m benchmarks.shards", **result}, context)


if __name__ == "__main__":
    main()
