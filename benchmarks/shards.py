"""Packing, indexing and reading a dataset of ImageNet's size: 140,000 JPEG images of 1,000 classes.

    python -m benchmarks.shards [--num_images 140000] [--folder FOLDER]

The images are smooth noise, whose JPEG files are as large as photographs'. One epoch is read in shuffled batches,
beside webdataset's own pipeline, which reads the same shards one after the other and decodes them. Needs 20 GB of
disk. Writes results/shards.json.
"""

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset

from benchmarks.harness import compared, open_benchmark, print_result, timed
from pipeline.data.codec import encode_image, to_uint8
from pipeline.data.loader import draw_batch, read_batches
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import Sample, pack, remove_parts, write_part
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.seeds import make_generator
from pipeline.synthesis.inputs import InitNoiseConfig, init_noise, to_pixels

SIZE_PX, NUM_CLASSES, BATCH = 224, 1000, 256
# Different JPEG files; every image is one of them.
NUM_FILES = 256
# Images of one measurement, and how often both readers are measured in turn.
TIMED_IMAGES, TURNS = 4096, 5


def fabricate(folder: Path, num_images: int) -> None:
    """Parts as the synthesize stage writes them."""
    canvas = init_noise(
        (NUM_FILES, 3, SIZE_PX, SIZE_PX), InitNoiseConfig(spectrum=1.0, correlation=0.9), make_generator(0, "x")
    )
    files = [encode_image(image, "jpeg") for image in to_uint8(to_pixels(canvas))]
    for index, numbers in enumerate(batch_ranges(num_images, BATCH)):
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


def read_ours(images: ShardSet, step: int) -> int:
    """Read `TIMED_IMAGES` of a shuffled epoch in batches; returns their number."""
    steps = range(step, step + TIMED_IMAGES // BATCH)
    batches = (draw_batch(len(images), BATCH, 0, "benchmark", s).tolist() for s in steps)
    return sum(len(pixels) for pixels in read_batches(images, batches))


def read_plainly(folder: Path) -> Iterator[int]:
    """Read `TIMED_IMAGES` at a time with webdataset, in the order of the shards, decoded and batched."""
    tars = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("torchrgb8").to_tuple("jpg", "cls")
    dataset = samples.repeat().batched(BATCH)
    count = 0
    for pixels, _ in dataset:
        count += len(pixels)
        if count >= TIMED_IMAGES:
            yield count
            count = 0


def measure(folder: Path, num_images: int, context: DistributedContext) -> dict[str, Any]:
    """Seconds and bytes of every part, and the rates of both readers, measured in turn."""
    facts = {
        "round": 0,
        "teacher": "none",
        "num_classes": NUM_CLASSES,
        "shape": [3, SIZE_PX, SIZE_PX],
        "image_format": "jpeg",
        "images_per_shard": 1000,
        "versions": versions(),
    }
    fabricate(folder, num_images)
    pack_s, _ = timed(context, pack, folder, range(len(batch_ranges(num_images, BATCH))), {"benchmark": 0}, facts)
    pack_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    remove_parts(folder)
    index_s, images = timed(context, ShardSet, [folder])
    plain = read_plainly(folder)
    rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
    for turn in range(TURNS + 1):
        ours_s, _ = timed(context, read_ours, images, turn * TIMED_IMAGES // BATCH)
        plain_s, _ = timed(context, next, plain)
        if turn:  # the first turn warms up
            rates["ours"].append(TIMED_IMAGES / ours_s)
            rates["webdataset"].append(TIMED_IMAGES / plain_s)
    return {
        "num_images": num_images,
        "bytes_per_image": sum(p.stat().st_size for p in (folder / "train").glob("*.tar")) / num_images,
        "pack_s": pack_s,
        "pack_peak_bytes": pack_bytes,
        "index_s": index_s,
        **compared(rates, "images_per_s"),
    }


def main() -> None:
    """Measure in a folder that is removed again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=140_000)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room for it")
    arguments = parser.parse_args()
    with open_benchmark() as context, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments.num_images, context)
        print_result("shards", {"command": "python -m benchmarks.shards", **result}, context)


if __name__ == "__main__":
    main()
