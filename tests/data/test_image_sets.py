"""Real images as npz files, scikit-learn's digits and shards; their labels, shapes and identities."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import ROUND_IMAGES

from pipeline.data.image_sets import DIGITS_NUM_TEST, DataConfig, load_images, source_identity
from pipeline.data.parts import ShardError
from pipeline.data.shards import MANIFEST
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError

DIGITS = ImageConfig(channels=1, height=8, width=8, num_classes=10)
COLOR = ImageConfig(channels=3, height=8, width=8, num_classes=12)


def test_digits_split_is_fixed_disjoint_and_complete():
    from sklearn.datasets import load_digits

    train, test = (
        load_images(DataConfig(test="sklearn:digits", train="sklearn:digits"), split, DIGITS)
        for split in ("train", "test")
    )
    assert len(test.labels) == DIGITS_NUM_TEST == 500
    digits = load_digits()
    rounded = np.rint(digits.images * 255 / 16).astype(np.uint8)
    assert len(train.labels) + len(test.labels) == len(digits.target)
    split_pixels = [*map(bytes, train.pixels.numpy().reshape(-1, 64)), *map(bytes, test.pixels.numpy().reshape(-1, 64))]
    assert sorted(split_pixels) == sorted(map(bytes, rounded.reshape(-1, 64)))
    labels = dict(zip(map(bytes, rounded.reshape(-1, 64)), digits.target.tolist(), strict=True))
    assert [labels[image] for image in split_pixels] == [*train.labels.tolist(), *test.labels.tolist()]
    assert test.labels[:8].tolist() == [6, 5, 5, 7, 9, 9, 8, 4]
    assert set(test.labels.tolist()) == set(range(10))


def test_identity_of_a_source_is_its_content(tmp_path):
    def hash_of(source, split="test"):
        data = DataConfig(test=source, train=source)
        return source_identity(data, split, DIGITS if "digits" in source else COLOR)["hash"]

    assert hash_of("sklearn:digits") == hash_of("sklearn:digits") != hash_of("sklearn:digits", "train")
    path = save_npz(tmp_path / "images.npz")
    before = hash_of(f"npz:{path}")
    save_npz(path, y=np.zeros(20, np.int64))
    assert hash_of(f"npz:{path}") != before


def test_unknown_sklearn_set_raises():
    with pytest.raises(ValueError, match="sklearn:iris is not known; use sklearn:digits"):
        load_images(DataConfig(test="sklearn:iris"), "test", DIGITS)


@pytest.mark.parametrize("source", ["digits", "mnist:here", "npz:", ":x"])
def test_source_without_kind_or_name_raises(source):
    with pytest.raises(
        ConfigError, match="must be KIND:NAME with KIND one of sklearn, torchvision, imagefolder, tar, npz"
    ):
        DataConfig(test=source)


def save_npz(path: Path, **changes) -> Path:
    arrays = {
        "x": np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "y": np.arange(20, dtype=np.int32) % 12,
    }
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


def load_npz(path: Path):
    return load_images(DataConfig(test=f"npz:{path}"), "test", COLOR)


def test_npz_gives_channels_first_pixels_and_labels(tmp_path):
    path = save_npz(tmp_path / "images.npz")
    images = load_npz(path)
    with np.load(path) as arrays:
        assert np.array_equal(images.batch(range(20)).permute(0, 2, 3, 1).numpy(), arrays["x"])
        assert images.labels.tolist() == arrays["y"].tolist()
    assert images.labels.dtype == torch.int64


@pytest.mark.parametrize("name", ["x", "y"])
def test_npz_without_an_array_raises(tmp_path, name):
    path = save_npz(tmp_path / "images.npz", **{name: None})
    with pytest.raises(ValueError, match=f"npz:{path} must hold the arrays x and y .*{name}"):
        load_npz(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": np.zeros((20, 8, 8, 3), np.float32)},
        {"x": np.zeros((20, 8, 8), np.uint8)},
        {"y": np.zeros(19, np.int64)},
        {"y": np.arange(20) % 12 + 0.7},
        {"y": (np.arange(20) % 12)[:, None]},
        {"y": np.array(3)},
    ],
)
def test_npz_of_wrong_type_or_shape_raises(tmp_path, changes):
    path = save_npz(tmp_path / "images.npz", **changes)
    with pytest.raises(ValueError, match=f"npz:{path}: x is .* it needs x uint8"):
        load_npz(path)


def test_npz_with_pickled_objects_raises(tmp_path):
    path = save_npz(tmp_path / "images.npz", x=np.array([{}] * 20, dtype=object))
    with pytest.raises(ValueError, match=f"npz:{path} must hold the arrays x and y .*pickle"):
        load_npz(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy does not close the file
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_npz_raises(tmp_path, share):
    path = save_npz(tmp_path / "images.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"npz:{path} must hold the arrays x and y"):
        load_npz(path)


def test_missing_npz_raises(tmp_path):
    with pytest.raises(ValueError, match=f"npz:{tmp_path / 'no.npz'}: there is no such file"):
        load_npz(tmp_path / "no.npz")


@pytest.mark.parametrize("label", [12, 200, -1])
def test_label_out_of_range_raises(tmp_path, label):
    path = save_npz(tmp_path / "images.npz", y=np.array([0] * 19 + [label]))
    with pytest.raises(ValueError, match=f"npz:{path} holds label .*images.num_classes=12"):
        load_npz(path)


@pytest.mark.parametrize("shape", [(20, 8, 9, 3), (20, 8, 8, 1), (20, 4, 4, 3)])
def test_images_of_wrong_shape_raise(tmp_path, shape):
    path = save_npz(tmp_path / "images.npz", x=np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=f"npz:{path} holds images of .* the `images` section says .3, 8, 8."):
        load_npz(path)


def test_empty_image_set_raises(tmp_path):
    path = save_npz(tmp_path / "images.npz", x=np.zeros((0, 8, 8, 3), np.uint8), y=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=f"npz:{path} holds no images"):
        load_npz(path)


def test_synthetic_round_is_an_image_source(packed_round):
    folder, pixels = packed_round
    images = load_images(DataConfig(test=f"shards:{folder}"), "test", COLOR)
    numbers = [int(key.split("/")[1]) for key in images.keys]
    assert torch.equal(images.batch(range(ROUND_IMAGES)), pixels[numbers])


def test_shards_of_wrong_shape_or_without_manifest_raise(packed_round, tmp_path):
    folder, _ = packed_round
    with pytest.raises(ValueError, match=rf"shards:{folder} holds images of .* = \(3, 8, 8\)"):
        load_images(DataConfig(test=f"shards:{folder}"), "test", DIGITS)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ShardError, match=str(tmp_path)):
        load_images(DataConfig(test=f"shards:{tmp_path}"), "test", COLOR)


def test_altered_shards_are_no_image_source(packed_round, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(packed_round[0], folder)
    shard = next((folder / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # the size stays
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=rf"{shard} was altered: its SHA-256 is not the manifest's; .* {folder}"):
        load_images(DataConfig(test=f"shards:{folder}"), "test", COLOR)


@pytest.mark.skipif("DREAMDISTILL_DATA" not in os.environ, reason="DREAMDISTILL_DATA names no folder of real images")
def test_cifar10_test_set_is_complete():
    path = Path(os.environ["DREAMDISTILL_DATA"]) / "cifar10" / "cifar10_test.npz"
    images = ImageConfig(channels=3, height=32, width=32, num_classes=10)
    test = load_images(DataConfig(test=f"npz:{path}"), "test", images)
    assert test.batch(range(2)).shape == (2, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
