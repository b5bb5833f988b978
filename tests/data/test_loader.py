"""Preloading, reading ahead, and the order of training."""

import threading

import pytest
import torch

from pipeline.data import loader
from pipeline.data.image_sets import ArrayImages
from pipeline.data.loader import CACHE_SHARE, cache_limit_bytes, draw_batch, load_batches, preload, read_batches
from pipeline.data.shard_set import ShardSet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_preloaded_images_are_the_same(packed_round):
    images = ShardSet([packed_round[0]])
    cached = preload(images, CPU)
    assert torch.equal(cached.pixels, images.batch(range(len(images))))
    assert torch.equal(cached.labels, images.labels)


@pytest.mark.parametrize("pixels_device", ["cpu", "meta"])
def test_batches_come_to_the_device_from_any_other(pixels_device):
    images = ArrayImages(torch.zeros(5, 3, 2, 2, dtype=torch.uint8, device=pixels_device), torch.arange(5))
    ((pixels, labels),) = load_batches(images, [torch.tensor([4, 0])], torch.device("meta"))
    assert (pixels.device.type, pixels.shape, pixels.dtype) == ("meta", (2, 3, 2, 2), torch.uint8)
    assert (labels.device.type, labels.shape) == ("meta", (2,))


def first_draws(num_images, batch_size, num_steps, seed=0, purpose="test") -> list[torch.Tensor]:
    return [draw_batch(num_images, batch_size, seed, purpose, step) for step in range(num_steps)]


@pytest.mark.parametrize(("num_images", "batch_size"), [(36, 12), (37, 12), (10, 10), (7, 20)])
def test_epoch_has_every_image_once_in_equal_batches(num_images, batch_size):
    batches = first_draws(num_images, batch_size, num_images)
    assert {len(batch) for batch in batches} == {batch_size}
    epochs = torch.cat(batches).view(batch_size, num_images)
    assert all(sorted(epoch.tolist()) == list(range(num_images)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == batch_size


def test_batches_of_a_shard_set_mix_classes(packed_round):
    images = ShardSet([packed_round[0]])
    assert all(len(images.labels[batch].unique()) > 4 for batch in first_draws(len(images), 12, len(images) // 12))


def test_order_depends_on_seed_purpose_and_step():
    def order(seed=0, purpose="test"):
        torch.rand(1)
        return torch.cat(first_draws(50, 8, 12, seed, purpose)).tolist()

    assert order() == order()
    assert len({tuple(o) for o in (order(), order(seed=1), order(purpose="other"))}) == 3
    assert draw_batch(50, 8, 0, "test", 11).tolist() == order()[-8:]


class LargeImages:
    """Images of a megabyte each, of which `num_read` were read."""

    def __init__(self, num_images: int) -> None:
        self.labels, self.num_read = torch.zeros(num_images, dtype=torch.long), 0

    def batch(self, indices):
        self.num_read += len(indices)
        return torch.zeros(len(indices), 1, 1024, 1024, dtype=torch.uint8)


def test_read_ahead_is_limited_in_bytes(monkeypatch):
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", 10 * 2**20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    images, num_yielded = LargeImages(100), 0
    for batch in read_batches(images, [range(i, i + 4) for i in range(0, 100, 4)]):
        assert images.num_read - 1 - num_yielded <= 12  # one more was read for its size
        num_yielded += len(batch)
    assert num_yielded == 100


def test_large_batch_is_read_by_all_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    images, all_threads = LargeImages(200), threading.Barrier(4)

    def batch(indices):
        if len(indices) > 1:
            all_threads.wait(timeout=60)  # passes only with four threads at once
        return torch.tensor(list(indices), dtype=torch.uint8)[:, None, None, None]

    images.batch = batch
    (pixels,) = read_batches(images, [range(128)])
    assert pixels.flatten().tolist() == list(range(128))


def test_batch_above_the_read_ahead_limit_is_read(monkeypatch):
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", 1)
    assert [len(batch) for batch in read_batches(LargeImages(5), [range(3), range(3, 5)])] == [3, 2]


def test_cache_limit_is_memory_gib_or_a_share_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(loader, "free_memory_bytes", lambda device: 100 * 2**30)
    assert cache_limit_bytes(None, CPU, 4) == CACHE_SHARE * 25 * 2**30
    assert cache_limit_bytes(None, CUDA, 4) == CACHE_SHARE * 100 * 2**30
    assert cache_limit_bytes(3.0, CUDA, 4) == 3 * 2**30


def test_140_000_images_of_224_pixels_fit_the_cache_of_78_gib(monkeypatch):
    monkeypatch.setattr(loader, "free_memory_bytes", lambda device: 78 * 2**30)
    assert cache_limit_bytes(None, CUDA) > 140_000 * 3 * 224 * 224


@pytest.mark.parametrize("cuda", [True, False])
def test_out_of_memory_in_preload_names_memory_gib(packed_round, monkeypatch, cuda):
    empty = torch.empty

    def fail(*shape, **options):
        if cuda:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(2**50)

    images = ShardSet([packed_round[0]])
    monkeypatch.setattr(torch, "empty", fail)
    monkeypatch.setattr(loader, "num_bytes", lambda images: 2**30)
    monkeypatch.setattr(ShardSet, "batch", lambda self, indices: torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"memory_gib: 36 decoded images need 1\.00 GiB, more than cpu has free; set a lower"
    ):
        preload(images, CPU)
