"""Image sets: synthetic shards and real images behind one small interface."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.folders import FolderImages, open_folder, open_tar
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import sha256_of

KINDS = ("sklearn", "torchvision", "imagefolder", "tar", "npz", "shards")
Split = Literal["train", "test"]
# Sets in which a mirrored image has another class or none.
NOT_MIRRORABLE = ("sklearn:digits", "torchvision:MNIST")
# scikit-learn's digits are one set of 1,797 images; so many of them, drawn with this seed, are the test images.
DIGITS_NUM_TEST, DIGITS_SPLIT_SEED = 500, 0
DIGITS_LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Real images, each set as KIND:NAME.

    Sets are `sklearn:digits`, `torchvision:CIFAR10`, `imagefolder:PATH` (one sub-folder per class), `tar:PATH` (an
    uncompressed tar of images), `npz:PATH` (`x` uint8 NHWC, `y` integers) or `shards:PATH` (synthetic images).

    Attributes:
        test: The images that the student and the teacher are evaluated on.
        train: The images that a teacher without `weights` is trained on; the student never sees them.
        folder: Folder of torchvision's downloads.
        short_side_px: Length in pixels to which the short side of an image of `imagefolder` or `tar` is scaled before
            the center crop. null: the least that covers the image size.
        classes: A text file for `imagefolder` and `tar`: line i starts with the class name of label i; text after a
            space is a comment. null: labels follow the sorted class names.
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
        """The KIND:NAME of a split."""
        source = self.test if split == "test" else self.train
        assert source is not None
        return source


class ImageSet(Protocol):
    """Images with `labels`, int64 (N,)."""

    labels: Tensor

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images."""
        ...


class ArrayImages:
    """Images in memory: uint8 (N, C, H, W) with labels (N,)."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        assert pixels.dtype == torch.uint8 and pixels.dim() == 4 and len(pixels) == len(labels)
        self.pixels, self.labels = pixels, labels.long()

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images."""
        return self.pixels[torch.as_tensor(indices)]


def load_images(data: DataConfig, split: Split, images: ImageConfig) -> ImageSet:
    """The real images of a split; raises ValueError when they are not available or do not fit `images`."""
    source = data.source(split)
    kind, _, name = source.partition(":")
    if kind == "sklearn":
        image_set: ImageSet = _digits(name, split)
    elif kind == "torchvision":
        image_set = _torchvision(name, split, Path(data.folder))
    elif kind == "npz":
        image_set = _npz(Path(name))
    elif kind == "imagefolder":
        image_set = open_folder(Path(name), images, data.short_side_px, _class_names(data))
    elif kind == "tar":
        image_set = open_tar(Path(name), images, data.short_side_px, _class_names(data))
    else:
        image_set = ShardSet([Path(name)])
    _check_fit(image_set, source, images)
    return image_set


def _class_names(data: DataConfig) -> list[str] | None:
    if data.classes is None:
        return None
    path = Path(data.classes)
    if not path.is_file():
        raise ValueError(f"data.classes: there is no file {path}; correct the path")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _check_fit(image_set: ImageSet, source: str, images: ImageConfig) -> None:
    if len(image_set.labels) == 0:
        raise ValueError(f"{source} holds no images")
    shape = tuple(image_set.batch([0]).shape[1:])
    if shape != images.shape:
        raise ValueError(f"{source} holds images of (C, H, W) = {shape}, the `images` section says {images.shape}")
    invalid = image_set.labels[(image_set.labels < 0) | (image_set.labels >= images.num_classes)]
    if len(invalid):
        raise ValueError(
            f"{source} holds label {int(invalid[0])}, images.num_classes={images.num_classes} allows "
            f"0 to {images.num_classes - 1}"
        )


def _digits(name: str, split: str) -> ArrayImages:
    from sklearn.datasets import load_digits

    if name != "digits":
        raise ValueError(f"sklearn:{name} is not known; use sklearn:digits")
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED)).numpy()
    chosen = order[:DIGITS_NUM_TEST] if split == "test" else order[DIGITS_NUM_TEST:]
    pixels = np.rint(digits.images[chosen] * (255 / DIGITS_LEVELS)).astype(np.uint8)
    return ArrayImages(torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target[chosen]))


def _torchvision(name: str, split: str, folder: Path) -> ArrayImages:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, name, None)
    if not isinstance(dataset, type):
        raise ValueError(f"torchvision:{name} is not a data set of torchvision.datasets")
    try:
        data: Any = dataset(str(folder), train=split == "train", download=True)
        targets = torch.as_tensor(data.targets)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"torchvision:{name} is not laid out like CIFAR10 or MNIST ({error}); use npz:PATH") from error
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision:{name} is not complete under {folder} and could not be downloaded ({error}); put it "
            "there, or use npz:PATH"
        ) from error
    pixels = torch.as_tensor(np.asarray(data.data))
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
        raise ValueError(
            f"npz:{path}: x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}; it needs x uint8 (N, H, W, C) and y "
            "integers (N,)"
        )
    return ArrayImages(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y.astype(np.int64)))


def source_identity(data: DataConfig, split: Split, images: ImageConfig) -> dict[str, Any]:
    """What a real image set depends on: its source, and a hash of its content; of folders, of file names and sizes."""
    source = data.source(split)
    kind, _, name = source.partition(":")
    image_set = load_images(data, split, images)
    if kind == "npz":
        digest = sha256_of(Path(name))
    elif kind == "shards":
        digest = read_manifest(Path(name))["fingerprint"]
    elif isinstance(image_set, FolderImages):
        files = zip(image_set.names, image_set.locations, image_set.labels.tolist(), strict=True)
        lines = [f"{Path(name).name} {size} {label}" for name, (_, _, size), label in files]
        digest = hashlib.sha256("\n".join([*lines, str(data.short_side_px)]).encode()).hexdigest()
    else:
        assert isinstance(image_set, ArrayImages)
        digest = hashlib.sha256(image_set.labels.numpy().tobytes() + image_set.pixels.numpy().tobytes()).hexdigest()
    return {"source": source, "hash": digest}
