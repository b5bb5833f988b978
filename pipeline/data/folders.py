"""Real images of any size, in class folders or in a tar, fitted to the image size of a run."""

import math
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.class_names import ClassNames, listed
from pipeline.data.codec import MAX_PIXELS, ImageError, decode_with_pillow, read_size
from pipeline.data.tars import list_tar
from pipeline.models.config import ImageConfig
from pipeline.runtime.files import read_range
from pipeline.runtime.text import is_printable, printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# The most bytes of a file: those of the largest image without compression (`codec.MAX_PIXELS`).
MAX_FILE_BYTES = 2**28
# The bytes that hold the header of nearly every image. A WebP, and a JPEG with a large profile, need more of them.
HEADER_BYTES = 2**16


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
            return torch.stack([self._read(i) for i in indices])
        except ImageError as error:
            with self._count_lock:  # one of the reading threads counts for all
                unreadable = self._unreadable
            raise self._error(unreadable) from error

    def check_headers(self, indices: Sequence[int]) -> None:
        """Raise ValueError that names those of the images whose header is none, or states too many pixels."""
        if faults := self._faults(self._check_header, indices):
            raise self._error(faults)

    @cached_property
    def _unreadable(self) -> list[str]:
        return self._faults(self._read, range(len(self.names)))

    def _faults(self, read: Callable[[int], object], indices: Iterable[int]) -> list[str]:
        """The names of the images that cannot be read, each with what is wrong."""
        faults = []
        for index in indices:
            try:
                read(index)
            except ImageError as error:
                faults.append(f"{self.names[index]} ({error.reason})")
        return faults

    def _error(self, faults: Sequence[str]) -> ValueError:
        return ValueError(
            f"{len(faults)} of {len(self.names)} images cannot be read: {listed(faults)}; replace or remove them"
        )

    def _read(self, index: int) -> Tensor:
        """uint8 (C, H, W), scaled with its aspect ratio, then center-cropped."""
        from torchvision.transforms.v2.functional import center_crop, resize

        image = decode_with_pillow(read_range(*self.locations[index]), self._channels, self.names[index])
        scaled_size = self._scaled_size(index, image.shape[1], image.shape[2])
        cropped: Tensor = center_crop(resize(image, scaled_size, antialias=True), list(self._size))
        return cropped

    def _check_header(self, index: int) -> None:
        (path, offset, size), name = self.locations[index], self.names[index]
        try:
            height, width = read_size(read_range(path, offset, min(size, HEADER_BYTES)), name)
        except ImageError:
            if size <= HEADER_BYTES:
                raise
            height, width = read_size(read_range(path, offset, size), name)
        self._scaled_size(index, height, width)

    def _scaled_size(self, index: int, height: int, width: int) -> list[int]:
        """(H, W) before the crop of an image of this size; raises ImageError when a narrow one would get too large."""
        sides = list(zip(self._size, (height, width), strict=True))
        scale = self._enlargement * max(target / side for target, side in sides)
        scaled_size = [max(target, round(side * scale)) for target, side in sides]
        if math.prod(scaled_size) > MAX_PIXELS:
            reason = f"{width} x {height} pixels, too narrow to be scaled to {' x '.join(map(str, self._size[::-1]))}"
            raise ImageError(self.names[index], reason)
        return scaled_size


def open_folder(root: Path, images: ImageConfig, options: FolderOptions) -> FolderImages:
    """An `imagefolder`: one sub-folder per class."""
    source = f"imagefolder:{root}"
    if not root.is_dir():
        raise ValueError(f"{source}: there is no such folder; correct the path")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    label_of = _labels_of(folders, options, images, source)
    paths = sorted(path for name in folders for path in (root / name).rglob("*") if _is_image(path.name))
    empty = set(folders) - {path.relative_to(root).parts[0] for path in paths}
    if empty and not options.is_subset:
        names = listed(sorted(empty))
        raise ValueError(f"{source}: no images ({', '.join(EXTENSIONS)}) in {names}; add some, or remove these folders")
    sizes = [_file_size(path) for path in paths]
    _check_files([str(path) for path in paths], sizes, source)
    labels = [label_of[path.relative_to(root).parts[0]] for path in paths]
    locations = [(path, 0, size or 0) for path, size in zip(paths, sizes, strict=True)]
    return FolderImages([str(path) for path in paths], locations, labels, images, options.short_side_px)


def open_tar(path: Path, images: ImageConfig, options: FolderOptions) -> FolderImages:
    """An uncompressed tar of images. The class is the member's folder, or its name up to the first underscore."""
    source = f"tar:{path}"
    if not path.is_file():
        raise ValueError(f"{source}: there is no such file")
    try:
        members = [member for member in list_tar(path) if _is_image(member.name) and not member.isdir()]
    except tarfile.TarError as error:
        raise ValueError(
            f"{source} is no uncompressed tar, or is damaged ({error}); copy or download it again"
        ) from error
    members.sort(key=lambda member: member.name)
    sizes = [member.size if member.isreg() and not member.issparse() else None for member in members]
    _check_files([member.name for member in members], sizes, source)
    class_names = [_class_of(member.name) for member in members]
    label_of = _labels_of(sorted(set(class_names)), options, images, source)
    locations = [(path, member.offset_data, member.size) for member in members]
    names = [f"{member.name} in {path}" for member in members]
    labels = [label_of[name] for name in class_names]
    return FolderImages(names, locations, labels, images, options.short_side_px)


def _file_size(path: Path) -> int | None:
    """The bytes of a file; None for a folder, a pipe, and a link to nothing."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def _check_files(names: Sequence[str], sizes: Sequence[int | None], source: str) -> None:
    """Raise ValueError for what has the name of an image and cannot be one, or cannot be named in a message."""
    for name, size in zip(names, sizes, strict=True):
        if not is_printable(name):
            fault = "has a name that is not UTF-8, or has control characters; rename it"
        elif size is None:
            fault = "is no file of its own; remove it, or put a file in its place"
        elif size > MAX_FILE_BYTES:
            fault = f"is larger than {MAX_FILE_BYTES:,} bytes; replace or remove it"
        else:
            continue
        raise ValueError(f"{source}: {printable(name)} {fault}")


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
