import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_facts, make_samples

from pipeline.data import loader
from pipeline.data.image_sets import DIGITS_NUM_TEST, DataConfig, load_images, source_identity
from pipeline.data.loader import CACHE_SHARE, cache_limit_bytes, draw_batch, preload, read_batches
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import MANIFEST, ShardError, pack, write_part
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError

DIGITS = ImageConfig(channels=1, height=8, width=8, num_classes=10)
COLOR = ImageConfig(channels=3, height=8, width=8, num_classes=12)
NUM_IMAGES = 36
CPU = torch.device("cpu")


def make_round(folder: Path, *, channels=3, first_image=0) -> torch.Tensor:
    """A packed round of 36 images of 12 classes, and their pixels; label = number modulo 12."""
    labels = [(first_image + i) % 12 for i in range(NUM_IMAGES)]
    samples, pixels = make_samples(labels, channels=channels, first_image=first_image)
    write_part(folder, 0, samples, "png")
    pack(folder, [0], {"seed": 0}, make_facts(num_classes=12, channels=channels, images_per_shard=2))
    return pixels


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("shards") / "0"
    return folder, make_round(folder)


def assert_same_images(found: dict[int, tuple[np.ndarray, int]], pixels: torch.Tensor) -> None:
    """`found` maps an image's number to its pixels (H, W, C) and label."""
    assert sorted(found) == list(range(len(pixels)))
    for number, (image, label) in found.items():
        assert label == number % 12
        assert np.array_equal(image, pixels[number].permute(1, 2, 0).numpy())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars to the GC
def test_webdataset_reads_every_image_with_its_label(packed):
    import webdataset

    folder, pixels = packed
    tars = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    reader = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__")
    found = {int(key.split("/")[1]): (np.asarray(image), label) for image, label, key in reader}
    assert_same_images(found, pixels)


def test_datasets_reads_every_image_with_its_label(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    folder, pixels = packed
    read = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(read) == ["train"]
    found = {int(row["__key__"].split("/")[1]): (np.asarray(row["png"]), row["cls"]) for row in read["train"]}
    assert_same_images(found, pixels)
    assert {row["json"]["label"] for row in read["train"]} == set(range(12))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars to the GC
def test_timm_reads_every_image_with_its_label(packed):
    from timm.data import create_dataset

    folder, pixels = packed
    read = create_dataset("wds/", root=str(folder), split="train")
    assert len(read) == NUM_IMAGES
    by_content = {image.permute(1, 2, 0).numpy().tobytes(): number for number, image in enumerate(pixels)}
    found = {by_content[np.asarray(image).tobytes()]: (np.asarray(image), label) for image, label in read}
    assert_same_images(found, pixels)


def test_torchvision_reads_the_unpacked_images_with_their_labels(packed, tmp_path):
    from torchvision.datasets import ImageFolder

    folder, pixels = packed
    for path in (folder / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path, filter="data")
    read = ImageFolder(str(tmp_path))
    found = {int(Path(path).stem): (np.asarray(Image.open(path)), label) for path, label in read.samples}
    assert_same_images(found, pixels)


def test_a_shard_set_is_the_images_of_its_rounds(packed, tmp_path):
    folder, first = packed
    second = make_round(tmp_path / "1", first_image=NUM_IMAGES)
    images = ShardSet([folder, tmp_path / "1"])
    numbers = [int(key.split("/")[1]) for key in images.keys]
    assert sorted(numbers) == list(range(2 * NUM_IMAGES))
    assert torch.equal(images.batch(range(len(images))), torch.cat([first, second])[numbers])
    assert images.labels.tolist() == [number % 12 for number in numbers]
    image, label = images[5]
    assert torch.equal(image, images.batch([5])[0])
    assert label == images.labels[5]


def test_a_shard_set_needs_complete_rounds(packed, tmp_path):
    folder, _ = packed
    with pytest.raises(ShardError, match=f"{tmp_path} holds no complete synthetic dataset; run `make synthesize`"):
        ShardSet([folder, tmp_path])


def test_images_held_in_memory_are_the_same(packed):
    images = ShardSet([packed[0]])
    held = preload(images, torch.device("cpu"))
    assert torch.equal(held.pixels, images.batch(range(len(images))))
    assert torch.equal(held.labels, images.labels)


def first_draws(num_images, batch_size, num_steps, seed=0, purpose="test") -> list[torch.Tensor]:
    return [draw_batch(num_images, batch_size, seed, purpose, step) for step in range(num_steps)]


@pytest.mark.parametrize(("num_images", "batch_size"), [(36, 12), (37, 12), (10, 10), (7, 20)])
def test_the_stream_shows_every_image_once_an_epoch_in_equal_batches(num_images, batch_size):
    batches = first_draws(num_images, batch_size, num_images)
    assert {len(batch) for batch in batches} == {batch_size}
    epochs = torch.cat(batches).view(batch_size, num_images)
    assert all(sorted(epoch.tolist()) == list(range(num_images)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == batch_size


def test_an_epoch_of_a_shard_set_mixes_classes(packed):
    images = ShardSet([packed[0]])
    assert all(len(images.labels[batch].unique()) > 4 for batch in first_draws(len(images), 12, len(images) // 12))


def test_the_order_depends_on_seed_purpose_and_step_alone():
    def order(seed=0, purpose="test"):
        torch.rand(1)
        return torch.cat(first_draws(50, 8, 12, seed, purpose)).tolist()

    assert order() == order()
    assert len({tuple(o) for o in (order(), order(seed=1), order(purpose="other"))}) == 3
    assert draw_batch(50, 8, 0, "test", 11).tolist() == order()[-8:]


def test_the_digits_split_is_fixed_disjoint_and_complete():
    from sklearn.datasets import load_digits

    train, test = (
        load_images(DataConfig(test="sklearn:digits", train="sklearn:digits"), split, DIGITS)
        for split in ("train", "test")
    )
    assert len(test.labels) == DIGITS_NUM_TEST == 500
    everything = load_digits()
    rounded = np.rint(everything.images * 255 / 16).astype(np.uint8)
    assert len(train.labels) + len(test.labels) == len(everything.target)
    found = [*map(bytes, train.pixels.numpy().reshape(-1, 64)), *map(bytes, test.pixels.numpy().reshape(-1, 64))]
    assert sorted(found) == sorted(map(bytes, rounded.reshape(-1, 64)))
    labels = dict(zip(map(bytes, rounded.reshape(-1, 64)), everything.target.tolist(), strict=True))
    assert [labels[image] for image in found] == [*train.labels.tolist(), *test.labels.tolist()]
    assert test.labels[:8].tolist() == [6, 5, 5, 7, 9, 9, 8, 4]
    assert set(test.labels.tolist()) == set(range(10))


def test_a_source_is_identified_by_its_content(tmp_path):
    def hash_of(source, split="test"):
        data = DataConfig(test=source, train=source)
        return source_identity(data, split, DIGITS if "digits" in source else COLOR)["hash"]

    assert hash_of("sklearn:digits") == hash_of("sklearn:digits") != hash_of("sklearn:digits", "train")
    path = save_npz(tmp_path / "images.npz")
    before = hash_of(f"npz:{path}")
    save_npz(path, y=np.zeros(20, np.int64))
    assert hash_of(f"npz:{path}") != before


def test_an_unknown_sklearn_set_is_refused():
    with pytest.raises(ValueError, match="sklearn:iris is not known; sklearn:digits is"):
        load_images(DataConfig(test="sklearn:iris"), "test", DIGITS)


@pytest.mark.parametrize("source", ["digits", "mnist:here", "npz:", ":x"])
def test_a_source_must_name_kind_and_place(source):
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


def test_npz_gives_pixels_channels_first_and_labels(tmp_path):
    path = save_npz(tmp_path / "images.npz")
    images = load_npz(path)
    with np.load(path) as arrays:
        assert np.array_equal(images.batch(range(20)).permute(0, 2, 3, 1).numpy(), arrays["x"])
        assert images.labels.tolist() == arrays["y"].tolist()
    assert images.labels.dtype == torch.int64


@pytest.mark.parametrize("name", ["x", "y"])
def test_npz_without_an_array_is_refused(tmp_path, name):
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
def test_npz_of_another_type_or_form_is_refused(tmp_path, changes):
    path = save_npz(tmp_path / "images.npz", **changes)
    with pytest.raises(ValueError, match=f"npz:{path}: x is .* it needs x uint8"):
        load_npz(path)


def test_npz_with_pickled_objects_is_refused(tmp_path):
    path = save_npz(tmp_path / "images.npz", x=np.array([{}] * 20, dtype=object))
    with pytest.raises(ValueError, match=f"npz:{path} must hold the arrays x and y .*pickle"):
        load_npz(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves the file to the GC
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_npz_is_refused(tmp_path, share):
    path = save_npz(tmp_path / "images.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"npz:{path} must hold the arrays x and y"):
        load_npz(path)


def test_a_missing_npz_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"npz:{tmp_path / 'no.npz'}: there is no such file"):
        load_npz(tmp_path / "no.npz")


@pytest.mark.parametrize("label", [12, 200, -1])
def test_labels_out_of_range_are_refused(tmp_path, label):
    path = save_npz(tmp_path / "images.npz", y=np.array([0] * 19 + [label]))
    with pytest.raises(ValueError, match=f"npz:{path} holds label .*images.num_classes=12"):
        load_npz(path)


@pytest.mark.parametrize("shape", [(20, 8, 9, 3), (20, 8, 8, 1), (20, 4, 4, 3)])
def test_images_of_another_shape_are_refused(tmp_path, shape):
    path = save_npz(tmp_path / "images.npz", x=np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=f"npz:{path} holds images of .* the `images` section says .3, 8, 8."):
        load_npz(path)


def test_an_empty_set_is_refused(tmp_path):
    path = save_npz(tmp_path / "images.npz", x=np.zeros((0, 8, 8, 3), np.uint8), y=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=f"npz:{path} holds no images"):
        load_npz(path)


def test_a_synthetic_round_serves_as_a_source(packed):
    folder, pixels = packed
    images = load_images(DataConfig(test=f"shards:{folder}"), "test", COLOR)
    numbers = [int(key.split("/")[1]) for key in images.keys]
    assert torch.equal(images.batch(range(NUM_IMAGES)), pixels[numbers])


def test_a_source_of_shards_must_fit_and_be_complete(packed, tmp_path):
    folder, _ = packed
    with pytest.raises(ValueError, match=rf"shards:{folder} holds images of .* = \(3, 8, 8\)"):
        load_images(DataConfig(test=f"shards:{folder}"), "test", DIGITS)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ShardError, match=str(tmp_path)):
        load_images(DataConfig(test=f"shards:{tmp_path}"), "test", COLOR)


@pytest.mark.skipif("DREAMDISTILL_DATA" not in os.environ, reason="DREAMDISTILL_DATA names no folder of real images")
def test_the_cifar10_test_set_is_read_whole():
    path = Path(os.environ["DREAMDISTILL_DATA"]) / "cifar10" / "cifar10_test.npz"
    images = ImageConfig(channels=3, height=32, width=32, num_classes=10)
    found = load_images(DataConfig(test=f"npz:{path}"), "test", images)
    assert found.batch(range(2)).shape == (2, 3, 32, 32)
    assert torch.bincount(found.labels).tolist() == [1000] * 10
    assert found.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


class LargeImages:
    """Images of a megabyte each, which count how many are decoded and not yet taken."""

    def __init__(self, num_images: int) -> None:
        self.labels, self.num_started = torch.zeros(num_images, dtype=torch.long), 0

    def batch(self, indices):
        self.num_started += len(indices)
        return torch.zeros(len(indices), 1, 1024, 1024, dtype=torch.uint8)


def test_images_are_read_ahead_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", 10 * 2**20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    images, taken = LargeImages(100), 0
    for batch in read_batches(images, [range(i, i + 4) for i in range(0, 100, 4)]):
        assert images.num_started - 1 - taken <= 12  # one was decoded to learn its size
        taken += len(batch)
    assert taken == 100


def test_a_large_batch_is_read_by_all_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    images, meeting = LargeImages(200), threading.Barrier(4)

    def batch(indices):
        if len(indices) > 1:
            meeting.wait(timeout=60)  # only four readers at once pass
        return torch.tensor(list(indices), dtype=torch.uint8)[:, None, None, None]

    images.batch = batch
    (found,) = read_batches(images, [range(128)])
    assert found.flatten().tolist() == list(range(128))


def test_a_batch_larger_than_the_limit_is_read_all_the_same(monkeypatch):
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", 1)
    assert [len(batch) for batch in read_batches(LargeImages(5), [range(3), range(3, 5)])] == [3, 2]


def test_decoded_images_get_a_share_of_the_free_memory_unless_a_limit_is_given(monkeypatch):
    monkeypatch.setattr(loader, "free_memory_bytes", lambda device: 100 * 2**30)
    assert cache_limit_bytes(None, torch.device("cpu"), 4) == CACHE_SHARE * 25 * 2**30
    assert cache_limit_bytes(None, torch.device("cuda"), 4) == CACHE_SHARE * 100 * 2**30
    assert cache_limit_bytes(3.0, torch.device("cuda"), 4) == 3 * 2**30


def test_140_000_images_of_224_pixels_stay_on_a_device_with_78_gib_free(monkeypatch):
    monkeypatch.setattr(loader, "free_memory_bytes", lambda device: 78 * 2**30)
    assert cache_limit_bytes(None, torch.device("cuda")) > 140_000 * 3 * 224 * 224


def test_images_that_the_device_has_no_memory_for_are_blamed_on_memory_gib(packed, monkeypatch):
    def fail(*shape, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    images = ShardSet([packed[0]])
    monkeypatch.setattr(torch, "empty", fail)
    monkeypatch.setattr(loader, "num_bytes", lambda images: 2**30)
    monkeypatch.setattr(ShardSet, "batch", lambda self, indices: torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"memory_gib: 36 decoded images need 1\.00 GiB, more than cpu has free; set it"
    ):
        preload(images, torch.device("cpu"))
