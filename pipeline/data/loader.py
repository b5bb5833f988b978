"""Loading of images: preloaded into memory, or read ahead batch by batch; and the order of training."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from itertools import tee

import torch
from torch import Tensor

from pipeline.data.image_sets import ArrayImages, ImageSet, check_headers
from pipeline.runtime.device import is_out_of_memory, to_device
from pipeline.runtime.hardware import free_memory_bytes
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.seeds import make_generator
from pipeline.runtime.threads import background_threads

# Images per read while preloading, and images that a thread decodes at a time.
READ_BATCH, READ_PIECE = 256, 32
# Images of a set that are decoded to see whether they can be. A photograph of 256 pixels takes 0.9 ms of a core, its
# header 0.05 ms, so that the look at 50,000 takes 4 s; to decode them all would take 45 s at each start.
TRIED_IMAGES = 2_000
# The most bytes of decoded images that wait for the device; one batch at least is always read ahead.
READ_AHEAD_BYTES = 256 * 2**20
# Share of the free memory for cached images, unless the user sets a limit: a network trains beside them, and the images
# of a new round exist twice for a moment.
CACHE_SHARE = 0.4


def evenly_spaced(num_images: int, at_most: int) -> Tensor:
    """The indices (N,) of evenly spaced images of a set, which may be sorted by class; N is at most `at_most`."""
    count = min(num_images, at_most)
    return torch.linspace(0, num_images - 1, count, dtype=torch.float64).round().long()


def num_bytes(images: ImageSet) -> int:
    """The bytes of all images, decoded to uint8."""
    return len(images.labels) * images.batch([0]).numel()


def cache_limit_bytes(memory_gib: float | None, device: torch.device, num_sharing: int = 1) -> float:
    """The bytes that cached images may take on `device`: `memory_gib`, or a share of its free memory.

    On the CPU, `num_sharing` processes share the memory.
    """
    if memory_gib is not None:
        return memory_gib * 2**30
    return CACHE_SHARE * free_memory_bytes(device) / (num_sharing if device.type == "cpu" else 1)


def preload(images: ImageSet, device: torch.device) -> ArrayImages:
    """All images, decoded once by several threads into one uint8 tensor on `device`.

    Raises ValueError when the device has too little memory.
    """
    ranges = batch_ranges(len(images.labels), READ_BATCH)
    try:
        pixels = torch.empty(len(images.labels), *images.batch([0]).shape[1:], dtype=torch.uint8, device=device)
        for indices, decoded in zip(ranges, read_batches(images, ranges), strict=True):
            pixels[indices.start : indices.stop] = decoded.to(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"memory_gib: {len(images.labels):,} decoded images need {num_bytes(images) / 2**30:.2f} GiB, more than "
            f"{device} has free; set a lower value, and they are read from disk in every epoch"
        ) from error
    return ArrayImages(pixels, images.labels.to(device))


def check_images(images: ImageSet) -> None:
    """Raise ValueError that names images which cannot be read, by the header of each and the pixels of some."""
    check_headers(images)
    tried = torch.split(evenly_spaced(len(images.labels), TRIED_IMAGES), READ_BATCH)
    for _ in read_batches(images, [indices.tolist() for indices in tried]):
        pass


def read_batches(images: ImageSet, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """uint8 (len(batch), C, H, W) for each batch of indices, in order, read ahead by as many threads as PyTorch uses.

    Threads suffice, since the decoders do not hold the interpreter's lock. Each takes a piece of a batch at a time, so
    that a large batch keeps all of them busy.
    """
    num_threads, image_bytes = torch.get_num_threads(), images.batch([0]).numel()
    max_ahead = max(1, min(READ_AHEAD_BYTES // image_bytes, 2 * num_threads * READ_PIECE))
    waiting: deque[tuple[int, list[Future[Tensor]]]] = deque()
    with background_threads(num_threads) as threads:
        try:
            for indices in batches:
                pieces = (indices[i : i + READ_PIECE] for i in range(0, len(indices), READ_PIECE))
                waiting.append((len(indices), [threads.submit(images.batch, piece) for piece in pieces]))
                while len(waiting) > 1 and sum(count for count, _ in waiting) > max_ahead:
                    yield _joined(waiting.popleft()[1])
            while waiting:
                yield _joined(waiting.popleft()[1])
        finally:
            for _, futures in waiting:  # the reader failed, or its caller stopped
                for future in futures:
                    future.cancel()


def _joined(pieces: Sequence[Future[Tensor]]) -> Tensor:
    return pieces[0].result() if len(pieces) == 1 else torch.cat([piece.result() for piece in pieces])


def load_batches(images: ImageSet, batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 (N, C, H, W) and labels (N,) on `device` for each batch of indices (N,), given on the CPU.

    Images that are preloaded on `device` are taken from there; others are read ahead.
    """
    resolved = torch.empty(0, device=device).device  # `cuda` means the current one of several
    if isinstance(images, ArrayImages) and images.pixels.device == images.labels.device == resolved:
        for indices in batches:
            on_device = to_device(indices, device)
            yield images.pixels[on_device], images.labels[on_device]
        return
    drawn, read = tee(batches)
    for indices, pixels in zip(drawn, read_batches(images, (batch.tolist() for batch in read)), strict=True):
        yield to_device(pixels, device), to_device(images.labels[indices], device)


def draw_batch(num_images: int, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
    """The indices (batch_size,) of one training step.

    Steps cut an endless stream of epochs into equal batches. An epoch has every index once, in an order of its own.
    """
    epoch, start = divmod(step * batch_size, num_images)
    drawn = [_epoch_order(num_images, seed, purpose, epoch)[start : start + batch_size]]
    while (missing := batch_size - sum(map(len, drawn))) > 0:
        epoch += 1
        drawn.append(_epoch_order(num_images, seed, purpose, epoch)[:missing])
    return torch.cat(drawn)


@lru_cache(maxsize=2)  # consecutive steps belong to one epoch or to two neighboring ones
def _epoch_order(num_images: int, seed: int, purpose: str, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=make_generator(seed, purpose, epoch))
