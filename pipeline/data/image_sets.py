"""Image sets: synthetic shards and real images behind one small interface."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.class_names import ClassNames, listed, read_class_names
from pipeline.data.damage import find_damage
from pipeline.data.folders import FolderImages, FolderOptions, open_folder, open_tar
from pipeline.data.given_sets import given_fix
from pipeline.data.npz import read_npz
from pipeline.data.parts import ShardError
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import sha256_of

KINDS = ("sklearn", "torchvision", "imagefolder", "tar", "npz", "shards")
Split = Literal["train", "test"]
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
        class_names: A text file: line i starts with the name of label i, which names a folder of `imagefolder` and
            `tar`; text after a space is its title in reports. null: labels follow the sorted names of the folders.
    """

    test: str
    train: str | None = None
    folder: str = "data"
    short_side_px: int | None = None
    class_names: str | None = None

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

    def read_class_names(self, num_classes: int) -> ClassNames | None:
        """The names of all classes, if a file names them; raises ConfigError when it does not fit."""
        return None if self.class_names is None else read_class_names(Path(self.class_names), num_classes)


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


class SubsetImages:
    """The images of some classes of another set, at its `indices`, with the positions in `classes` as labels."""

    def __init__(self, image_set: ImageSet, classes: Sequence[int]) -> None:
        chosen = torch.tensor(classes)
        matches = image_set.labels[:, None] == chosen
        self.image_set, self.indices = image_set, matches.any(1).nonzero()[:, 0]
        self.labels = matches[self.indices].int().argmax(1)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images."""
        return self.image_set.batch(self.indices[torch.as_tensor(indices)].tolist())


def load_images(data: DataConfig, split: Split, images: ImageConfig, classes: Sequence[int] | None = None) -> ImageSet:
    """The real images of a split, or those of some of its `classes`, labeled by their position in it.

    Warns of classes without images. Raises ValueError when images are not available or do not fit `images`, and when
    there is none of the classes.
    """
    image_set = _open(data, split, images, is_subset=classes is not None)
    if classes is None:
        return image_set
    subset = SubsetImages(image_set, classes)
    missing = sorted(set(range(len(classes))) - set(subset.labels.tolist()))
    names = data.read_class_names(images.num_classes)
    missing_names = listed([str(classes[i]) if names is None else names.keys[classes[i]] for i in missing])
    if len(missing) == len(classes):
        raise ValueError(
            f"data.{split}: {data.source(split)} holds no image of the `classes` of the run ({missing_names}); name "
            "other images or classes"
        )
    if missing:
        warnings.warn(
            f"data.{split}: {data.source(split)} holds no image of {len(missing)} of the `classes` of the run, which "
            f"cannot be scored ({missing_names}); add images of them, or shorten `classes`",
            stacklevel=2,
        )
    return subset


def check_headers(images: ImageSet) -> None:
    """Raise ValueError that names the files whose header is not that of an image, or of one that is too large."""
    if isinstance(images, SubsetImages) and isinstance(images.image_set, FolderImages):
        images.image_set.check_headers(images.indices.tolist())
    elif isinstance(images, FolderImages):
        images.check_headers(range(len(images.labels)))


def _open(data: DataConfig, split: Split, images: ImageConfig, *, is_subset: bool) -> ImageSet:
    source = data.source(split)
    kind, _, name = source.partition(":")
    if kind == "sklearn":
        image_set: ImageSet = _digits(name, split)
    elif kind == "torchvision":
        image_set = _torchvision(name, split, Path(data.folder))
    elif kind == "npz":
        image_set = ArrayImages(*read_npz(Path(name)))
    elif kind == "imagefolder":
        image_set = open_folder(Path(name), images, _folder_options(data, images, is_subset))
    elif kind == "tar":
        image_set = open_tar(Path(name), images, _folder_options(data, images, is_subset))
    else:
        image_set = _open_shards(Path(name))
    _check_fit(image_set, source, images)
    return image_set


def _open_shards(folder: Path) -> ShardSet:
    """The images of a complete set with the labels of its teacher; raises ShardError when a shard is damaged."""
    if damage := find_damage(folder, given_fix(folder)):
        raise ShardError(damage[0])
    image_set = ShardSet(folder)
    image_set.labels = torch.tensor(read_manifest(folder)["classes"])[image_set.labels]
    return image_set


def _folder_options(data: DataConfig, images: ImageConfig, is_subset: bool) -> FolderOptions:
    return FolderOptions(
        class_names=data.read_class_names(images.num_classes), short_side_px=data.short_side_px, is_subset=is_subset
    )


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
    except Exception as error:  # damaged files raise whatever their reader raises
        reason = str(error) or f"{type(error).__name__} in its reader"
        raise ValueError(
            f"torchvision:{name} is damaged or not complete under {folder}, and could not be downloaded ({reason}); "
            "remove it to download it again, put it there whole, or use npz:PATH"
        ) from error
    pixels = torch.as_tensor(np.asarray(data.data))
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return ArrayImages(pixels.contiguous(), targets)


def source_identity(data: DataConfig, split: Split, images: ImageConfig, *, is_subset: bool = False) -> dict[str, Any]:
    """What a real image set depends on: its source, and a hash of its content; of folders, of file names and sizes.

    With `is_subset`, classes may have no images.
    """
    source = data.source(split)
    kind, _, name = source.partition(":")
    image_set = _open(data, split, images, is_subset=is_subset)
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
