"""A `ShardSet`: the images of its rounds, and errors for shards that do not match their manifest."""

from pathlib import Path

import pytest
import torch
from tiny_run import ROUND_CLASSES, ROUND_IMAGES, write_round

from pipeline.data.codec import encode_image
from pipeline.data.parts import ShardError
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest


def test_shard_set_holds_the_images_of_its_rounds(packed_round, tmp_path):
    folder, first_pixels = packed_round
    second_pixels = write_round(tmp_path / "1", first_image=ROUND_IMAGES)
    images = ShardSet([folder, tmp_path / "1"])
    numbers = [int(key.split("/")[1]) for key in images.keys]
    assert sorted(numbers) == list(range(2 * ROUND_IMAGES))
    assert torch.equal(images.batch(range(len(images))), torch.cat([first_pixels, second_pixels])[numbers])
    assert images.labels.tolist() == [number % ROUND_CLASSES for number in numbers]
    image, label = images[5]
    assert torch.equal(image, images.batch([5])[0])
    assert label == images.labels[5]


def test_incomplete_round_raises(packed_round, tmp_path):
    folder, _ = packed_round
    with pytest.raises(ShardError, match=f"{tmp_path} holds no complete synthetic dataset; name the folder of one"):
        ShardSet([folder, tmp_path])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A packed round that a test may damage."""
    write_round(tmp_path / "0")
    return tmp_path / "0"


@pytest.mark.parametrize(("size", "complaint"), [(None, "is missing"), (-1, "was truncated or replaced")])
def test_shard_of_wrong_size_raises(folder, size, complaint):
    path = folder / "train" / "0003-00000.tar"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    with pytest.raises(ShardError, match=f"{path} .*{complaint}; run"):
        ShardSet([folder])


def test_altered_image_raises_when_it_is_read(folder):
    images = ShardSet([folder])
    entry = read_manifest(folder)["shards"][0]
    path = folder / entry["file"]
    content = bytearray(path.read_bytes())
    content[entry["offsets"][0]] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{entry['keys'][0]} in {path} .*`make verify`.* is not a readable image"):
        images[0]


def test_image_of_wrong_size_raises_when_it_is_read(folder):
    images = ShardSet([folder])
    entry = read_manifest(folder)["shards"][0]
    path = folder / entry["file"]
    with path.open("r+b") as file:
        file.seek(entry["offsets"][0])
        file.write(encode_image(torch.zeros(3, 4, 4, dtype=torch.uint8), "png"))
    message = f"{entry['keys'][0]} in {path} .*`make verify`.* \\(3, 4, 4\\), but the manifest states \\(3, 8, 8\\)"
    with pytest.raises(ValueError, match=message):
        images.batch([0])
