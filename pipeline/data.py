"""Image sets: synthetic shards and real images behind one small interface, and the order in which they are learnt."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.codec import decode_image
from pipeline.config import ConfigError
from pipeline.files import read_range, sha256_of
from pipeline.hardware import free_memory_bytes
from pipeline.models import ImageConfig
from pipeline.photos import PhotoSet, open_folder, open_tar
from pipeline.plan import batch_ranges
from pipeline.shards import check_sizes, read_manifest
from pipeline.world import background_threads, make_generator, to_device

KINDS = ("sklearn", "torchvision", "imagefolder", "tar", "npz", "shards")
Split = Literal["train", "test"]
# Sets whose mirrored images are of another class, or of none.
NOT_MIRRORABLE = ("sklearn:digits", "torchvision:MNIST")
# scikit-learn's digits come in one piece of 1,797 images; these many, drawn with this seed, are held out.
DIGITS_HELD_OUT, DIGITS_SPLIT_SEED = 500, 0
DIGITS_LEVELS = 16
# Images that are read into memory at a time, and that one thread decodes at a time.
READ_BATCH, READ_PIECE = 256, 32
# Decoded images that wait for the device, at most; at least one batch is always read ahead.
READ_AHEAD_BYTES = 256 * 2**20
# Share of the free memory that decoded images may take where no limit is given: a network has to train beside them, and
# the images of a new round lie there twice for a moment.
HELD_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Real images: `test` to evaluate on, `train` only to train a teacher where there is none.

    `sklearn:digits`, `torchvision:CIFAR10`, `imagefolder:PATH`, `tar:PATH`, `npz:PATH` (`x` uint8 NHWC, `y` integers)
    or `shards:PATH`. `folder` is where torchvision keeps its downloads. Of folders and tars, the short side of an
    image becomes `short_side_px` before the centre is cut out, and labels follow the lines of the file `classes`
    (what comes after a space is a comment), by default the sorted names.
    """

    test: str
    train: str | None = None
    folder: str = "data"
    short_side_px: int | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        for name in ("test", "train"):
            value = getattr(self, name)
            if value is not None and (value.partition(":")[0] not in KINDS or not value.partition(":")[2]):
                raise ConfigError(f"{name}: {value!r} must be KIND:NAME with KIND one of {', '.join(KINDS)}")
        if self.short_side_px is not None and self.short_side_px < 1:
            raise ConfigError(f"short_side_px: {self.short_side_px} must be at least 1")

    def source(self, split: Split) -> str:
        """KIND:NAME of a split."""
        source = self.test if split == "test" else self.train
        assert source is not None
        return source


class ImageSet(Protocol):
    """Images with labels: `labels` int64 (N,), and `batch`, which reads some of them."""

    labels: Tensor

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images."""
        ...


class ArrayImages:
    """Images held in memory: uint8 (N, C, H, W) with labels (N,)."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        assert pixels.dtype == torch.uint8 and pixels.dim() == 4 and len(pixels) == len(labels)
        self.pixels, self.labels = pixels, labels.long()

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images."""
        return self.pixels[torch.as_tensor(indices)]


class ShardSet:
    """A map-style view of the shards of one or more rounds: every image by its offset, no scan of the tars.

    `keys` are `CLASS/NUMBER`, `labels` int64 (N,). Raises ShardError when a manifest or a shard is missing, or a
    shard has not the size that the manifest says.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.keys: list[str] = []
        self.labels = torch.empty(0, dtype=torch.int64)
        self._places: list[tuple[Path, int, int]] = []
        for folder in folders:
            self.add(folder)

    def add(self, folder: Path) -> None:
        """Append the images of one more round."""
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        labels: list[int] = []
        for entry in manifest["shards"]:
            path = folder / entry["file"]
            self.keys += entry["keys"]
            self._places += [(path, o, s) for o, s in zip(entry["offsets"], entry["sizes"], strict=True)]
            labels += [entry["class"]] * entry["count"]
        self.labels = torch.cat([self.labels, torch.tensor(labels, dtype=torch.int64)])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """uint8 (C, H, W) and label of one image."""
        return self._read(index), int(self.labels[index])

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images, in channels-last format: nothing has to be transposed."""
        channels, height, width = self.shape
        pixels = torch.empty(len(indices), height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, index in zip(pixels, indices, strict=True):
            image.copy_(self._read(index))
        return pixels

    def _read(self, index: int) -> Tensor:
        path, offset, size = self._places[index]
        name = f"{self.keys[index]} in {path} (see `make verify`)"
        image = decode_image(read_range(path, offset, size), self.shape[0], name)
        if image.shape != self.shape:
            raise ValueError(f"{name} is an image of (C, H, W) = {tuple(image.shape)}, the manifest says {self.shape}")
        return image


def load_images(data: DataConfig, split: Split, images: ImageConfig) -> ImageSet:
    """The real images of a split; raises ValueError when they cannot be had or do not fit `images`."""
    source = data.source(split)
    kind, _, name = source.partition(":")
    if kind == "sklearn":
        found: ImageSet = _digits(name, split)
    elif kind == "torchvision":
        found = _torchvision(name, split, Path(data.folder))
    elif kind == "npz":
        found = _npz(Path(name))
    elif kind == "imagefolder":
        found = open_folder(Path(name), images, data.short_side_px, _class_names(data))
    elif kind == "tar":
        found = open_tar(Path(name), images, data.short_side_px, _class_names(data))
    else:
        found = ShardSet([Path(name)])
    _check_fit(found, source, images)
    return found


def _class_names(data: DataConfig) -> list[str] | None:
    if data.classes is None:
        return None
    path = Path(data.classes)
    if not path.is_file():
        raise ValueError(f"data.classes: there is no file {path}; correct the path")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _check_fit(found: ImageSet, source: str, images: ImageConfig) -> None:
    if len(found.labels) == 0:
        raise ValueError(f"{source} holds no images")
    shape = tuple(found.batch([0]).shape[1:])
    if shape != images.shape:
        raise ValueError(f"{source} holds images of (C, H, W) = {shape}, the `images` section says {images.shape}")
    strange = found.labels[(found.labels < 0) | (found.labels >= images.num_classes)]
    if len(strange):
        raise ValueError(f"{source} holds label {int(strange[0])}, images.num_classes={images.num_classes} forbids it")


def _digits(name: str, split: str) -> ArrayImages:
    from sklearn.datasets import load_digits

    if name != "digits":
        raise ValueError(f"sklearn:{name} is not known; sklearn:digits is")
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED)).numpy()
    chosen = order[:DIGITS_HELD_OUT] if split == "test" else order[DIGITS_HELD_OUT:]
    pixels = np.rint(digits.images[chosen] * (255 / DIGITS_LEVELS)).astype(np.uint8)
    return ArrayImages(torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target[chosen]))


def _torchvision(name: str, split: str, folder: Path) -> ArrayImages:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, name, None)
    if not isinstance(dataset, type):
        raise ValueError(f"torchvision:{name} is not a data set of torchvision.datasets")
    try:
        found: Any = dataset(str(folder), train=split == "train", download=True)
        targets = torch.as_tensor(found.targets)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"torchvision:{name} is not laid out like CIFAR10 or MNIST ({error}); use npz:PATH") from error
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision:{name} is not complete under {folder} and could not be downloaded ({error}); put it "
            "there, or use npz:PATH"
        ) from error
    pixels = torch.as_tensor(np.asarray(found.data))
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return ArrayImages(pixels.contiguous(), targets)


def _npz(path: Path) -> ArrayImages:
    if not path.is_file():
        raise ValueError(f"npz:{path}: there is no such file")
    try:
        with np.load(path) as arrays:
            x, y = arrays["x"], arrays["y"]
    except Exception as error:  # damaged archives raise whatever the decoder at hand raises
        raise ValueError(f"npz:{path} must hold the arrays x and y ({error})") from error
    if x.dtype != np.uint8 or x.ndim != 4 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        found = f"x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}"
        raise ValueError(f"npz:{path}: {found}; it needs x uint8 (N, H, W, C) and y integers (N,)")
    return ArrayImages(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y.astype(np.int64)))


def num_bytes(images: ImageSet) -> int:
    """Bytes of all images decoded to uint8."""
    return len(images.labels) * images.batch([0]).numel()


def held_limit_bytes(memory_gib: float | None, device: torch.device, num_sharing: int = 1) -> float:
    """What decoded images may take on `device`: `memory_gib`, or a share of what is free there.

    The workers of a machine, `num_sharing`, share the memory of the CPU.
    """
    if memory_gib is not None:
        return memory_gib * 2**30
    return HELD_SHARE * free_memory_bytes(device) / (num_sharing if device.type == "cpu" else 1)


def hold_in_memory(images: ImageSet, device: torch.device) -> ArrayImages:
    """All images decoded once, by several threads, into one uint8 tensor on `device`, which has to hold it."""
    ranges = batch_ranges(len(images.labels), READ_BATCH)
    try:
        pixels = torch.empty(len(images.labels), *images.batch([0]).shape[1:], dtype=torch.uint8, device=device)
        for indices, decoded in zip(ranges, read_batches(images, ranges), strict=True):
            pixels[indices.start : indices.stop] = decoded.to(device)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"memory_gib: {len(images.labels):,} decoded images need {num_bytes(images) / 2**30:.2f} GiB, more than "
            f"{device} has free; set it lower than that, and they are read again and again"
        ) from error
    return ArrayImages(pixels, images.labels.to(device))


def read_batches(images: ImageSet, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """uint8 (len(batch), C, H, W) for each batch of indices, in order, read ahead by as many threads as PyTorch has.

    Threads are enough, since the decoders do not hold the interpreter's lock. Each takes a piece of a batch at a time,
    so that a large batch keeps all of them busy.
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
            for _, futures in waiting:  # of a reader that failed, or is not listened to any more
                for future in futures:
                    future.cancel()


def _joined(pieces: Sequence[Future[Tensor]]) -> Tensor:
    return pieces[0].result() if len(pieces) == 1 else torch.cat([piece.result() for piece in pieces])


def load_batches(images: ImageSet, batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 (N, C, H, W) and labels (N,) on `device` for each batch of indices (N,), given on the CPU.

    Images held in memory are on `device` already; others are read ahead.
    """
    if isinstance(images, ArrayImages):
        for indices in batches:
            there = to_device(indices, device)
            yield images.pixels[there], images.labels[there]
        return
    drawn, read = tee(batches)
    for indices, pixels in zip(drawn, read_batches(images, (batch.tolist() for batch in read)), strict=True):
        yield to_device(pixels, device), to_device(images.labels[indices], device)


def source_identity(data: DataConfig, split: Split, images: ImageConfig) -> dict[str, Any]:
    """What a real image set is: its source, and a hash of its content, or, for photographs, of names and sizes."""
    source = data.source(split)
    kind, _, name = source.partition(":")
    found = load_images(data, split, images)
    if kind == "npz":
        digest = sha256_of(Path(name))
    elif kind == "shards":
        digest = read_manifest(Path(name))["fingerprint"]
    elif isinstance(found, PhotoSet):
        photos = zip(found.names, found.places, found.labels.tolist(), strict=True)
        lines = [f"{Path(photo).name} {size} {label}" for photo, (_, _, size), label in photos]
        digest = hashlib.sha256("\n".join([*lines, str(data.short_side_px)]).encode()).hexdigest()
    else:
        assert isinstance(found, ArrayImages)
        digest = hashlib.sha256(found.labels.numpy().tobytes() + found.pixels.numpy().tobytes()).hexdigest()
    return {"source": source, "hash": digest}


def draw_batch(num_images: int, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
    """Indices (batch_size,) of one training step.

    The steps cut an endless stream of epochs into equal batches; an epoch is every index once, in an order of its own.
    """
    epoch, start = divmod(step * batch_size, num_images)
    drawn = [_epoch_order(num_images, seed, purpose, epoch)[start : start + batch_size]]
    while (missing := batch_size - sum(map(len, drawn))) > 0:
        epoch += 1
        drawn.append(_epoch_order(num_images, seed, purpose, epoch)[:missing])
    return torch.cat(drawn)


@lru_cache(maxsize=2)  # consecutive steps are of the same epoch or of two neighbours
def _epoch_order(num_images: int, seed: int, purpose: str, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=make_generator(seed, purpose, epoch))
