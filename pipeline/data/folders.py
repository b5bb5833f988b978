"""Real images of any size, in class folders or in a tar, fitted to the image size of a run."""

import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.class_names import ClassNames, listed
from pipeline.data.codec import decode_with_pillow
from pipeline.models.config import ImageConfig
from pipeline.runtime.files import read_range

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How class folders are read.

    Labels follow `class_names`, by default the sorted names of the folders. The short side of an image is scaled to
    `short_side_px` before the center crop, by default to the least that covers the image size. With `is_subset`, named
    classes may have no images.
    """

    class_names: ClassNames | None = None
    short_side_px: int | None = None
    is_subset: bool = False


class FolderImages:
    """Encoded images at (file, offset, size); a read decodes, scales and center-crops them.

    `names`, `locations` and `labels`, int64 (N,), are in the same order.
    """

    def __init__(
        self,
        names: Sequence[str],
        locations: Sequence[tuple[Path, int, int]],
        labels: Sequence[int],
        images: ImageConfig,
        short_side_px: int | None,
    ) -> None:
        self.names, self.locations, self.labels = names, locations, torch.tensor(labels)
        self._channels, self._size = images.channels, images.size
        self._count_lock = threading.Lock()
        self._enlargement = (short_side_px or min(self._size)) / min(self._size)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images; raises ValueError if any cannot be read."""
        try:
            return torch.stack([self._fit(self._read(i)) for i in indices])
        except ValueError as error:
            with self._count_lock:  # one of the reading threads counts for all
                unreadable = self._unreadable
            raise ValueError(
                f"{len(unreadable)} of {len(self.names)} images cannot be read: {listed(unreadable)}; replace or "
                "remove them"
            ) from error

    @cached_property
    def _unreadable(self) -> list[str]:
        return [name for i, name in enumerate(self.names) if not self._is_readable(i)]

    def _read(self, index: int) -> Tensor:
        return decode_with_pillow(read_range(*self.locations[index]), self._channels, self.names[index])

    def _is_readable(self, index: int) -> bool:
        try:
            self._read(index)
        except ValueError:
            return False
        return True

    def _fit(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W), scaled with its aspect ratio, then center-cropped."""
        from torchvision.transforms.v2.functional import center_crop, resize

        sides = list(zip(self._size, image.shape[1:], strict=True))
        scale = self._enlargement * max(target / side for target, side in sides)
        scaled_size = [max(target, round(side * scale)) for target, side in sides]
        cropped: Tensor = center_crop(resize(image, scaled_size, antialias=True), list(self._size))
        return cropped


def open_folder(root: Path, images: ImageConfig, options: FolderOptions) -> FolderImages:
    """An `imagefolder`: one sub-folder per class."""
    source = f"imagefolder:{root}"
    if not root.is_dir():
        raise ValueError(f"{source}: there is no such folder; correct the path")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    label_of = _labels_of(folders, options, images, source)
    paths = sorted(path for name in folders for path in (root / name).rglob("*") if _is_image(path.name))
    empty = set(folders) - {path.relative_to(root).parts[0] for path in paths}
    if empty:
        raise ValueError(f"{source}: no images ({', '.join(EXTENSIONS)}) in {listed(sorted(empty))}")
    locations = [(path, 0, path.stat().st_size) for path in paths]
    labels = [label_of[path.relative_to(root).parts[0]] for path in paths]
    return FolderImages([str(path) for path in paths], locations, labels, images, options.short_side_px)


def open_tar(path: Path, images: ImageConfig, options: FolderOptions) -> FolderImages:
    """An uncompressed tar of images. The class is the member's folder, or its name up to the first underscore."""
    source = f"tar:{path}"
    if not path.is_file():
        raise ValueError(f"{source}: there is no such file")
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile() and _is_image(m.name)), key=lambda member: member.name)
    except tarfile.TarError as error:
        raise ValueError(f"{source} is not an uncompressed tar ({error})") from error
    class_names = [_class_of(member.name) for member in members]
    label_of = _labels_of(sorted(set(class_names)), options, images, source)
    locations = [(path, member.offset_data, member.size) for member in members]
    names = [f"{member.name} in {path}" for member in members]
    labels = [label_of[name] for name in class_names]
    return FolderImages(names, locations, labels, images, options.short_side_px)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _class_of(member: str) -> str:
    *folders, name = Path(member).parts
    return folders[-1] if folders else name.partition("_")[0]


def _labels_of(names: Sequence[str], options: FolderOptions, images: ImageConfig, source: str) -> dict[str, int]:
    """The label of each of the class `names` of a source; raises ValueError with their difference to the classes."""
    if options.class_names is None:
        if len(names) != images.num_classes:
            raise ValueError(
                f"{source} has {len(names)} classes, images.num_classes={images.num_classes}; set data.class_names to "
                "a file that names the classes in the order of the labels, one per line"
            )
        return {name: label for label, name in enumerate(names)}
    keys = options.class_names.keys
    missing, unknown = sorted(set(keys) - set(names)), sorted(set(names) - set(keys))
    if unknown:
        raise ValueError(
            f"{source}: {listed(unknown)} not named in the file of data.class_names; remove these folders or name them"
        )
    if missing and not options.is_subset:
        raise ValueError(
            f"{source}: no images of {listed(missing)}; add them (for test images, `classes` can choose others)"
        )
    return {name: label for label, name in enumerate(keys)}
