"""Image sets: synthetic shards and real images behind one small interface, and the order in which they are learnt."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.folders import PhotoSet, open_folder, open_tar
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import sha256_of

KINDS = ("sklearn", "torchvision", "imagefolder", "tar", "npz", "shards")


Split = Literal["train", "test"]


# Sets whose mirrored images are of another class, or of none.
NOT_MIRRORABLE = ("sklearn:digits", "torchvision:MNIST")


# scikit-learn's digits come in one piece of 1,797 images; these many, drawn with this seed, are held out.
DIGITS_HELD_OUT, DIGITS_SPLIT_SEED = 500, 0


DIGITS_LEVELS = 16


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
