"""Photographs of any size, in class folders or in a tar, fitted to the size of the images of a run."""

import tarfile
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.codec import decode_photo
from pipeline.models.config import ImageConfig
from pipeline.runtime.files import read_range

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


# Names that a message lists; the rest is counted.
MAX_NAMED = 5


class PhotoSet:
    """Encoded images at (file, offset, size), decoded, scaled and centre-cropped when they are read.

    `names` and `labels` int64 (N,) are in the same order. The short side becomes `short_side_px` before the crop, by
    default the least that covers the image size.
    """

    def __init__(
        self,
        names: Sequence[str],
        places: Sequence[tuple[Path, int, int]],
        labels: Sequence[int],
        images: ImageConfig,
        short_side_px: int | None,
    ) -> None:
        self.names, self.places, self.labels = names, places, torch.tensor(labels)
        self._channels, self._size = images.channels, (images.height, images.width)
        self._counting = threading.Lock()
        self._enlarged = (short_side_px or min(self._size)) / min(self._size)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images; raises ValueError that counts all that cannot be read."""
        try:
            return torch.stack([self._fit(self._read(i)) for i in indices])
        except ValueError as error:
            with self._counting:  # by one of the threads that read, for all of them
                bad = self._unreadable
            raise ValueError(
                f"{len(bad)} of {len(self.names)} images cannot be read: {_listed(bad)}; replace or remove them"
            ) from error

    @cached_property
    def _unreadable(self) -> list[str]:
        return [name for i, name in enumerate(self.names) if not self._is_readable(i)]

    def _read(self, index: int) -> Tensor:
        return decode_photo(read_range(*self.places[index]), self._channels, self.names[index])

    def _is_readable(self, index: int) -> bool:
        try:
            self._read(index)
        except ValueError:
            return False
        return True

    def _fit(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) scaled with its proportions kept, then cropped at the centre."""
        from torchvision.transforms.v2.functional import center_crop, resize

        scale = self._enlarged * max(wanted / found for wanted, found in zip(self._size, image.shape[1:], strict=True))
        scaled = [max(wanted, round(found * scale)) for wanted, found in zip(self._size, image.shape[1:], strict=True)]
        cropped: Tensor = center_crop(resize(image, scaled, antialias=True), list(self._size))
        return cropped


def open_folder(root: Path, images: ImageConfig, short_side_px: int | None, classes: Sequence[str] | None) -> PhotoSet:
    """An `imagefolder`: one sub-folder a class. Labels follow `classes`, by default the sorted folder names."""
    source = f"imagefolder:{root}"
    if not root.is_dir():
        raise ValueError(f"{source}: there is no such folder")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    label_of = _labels_of(folders, classes, images, source)
    paths = sorted(path for name in folders for path in (root / name).rglob("*") if _is_image(path.name))
    empty = set(folders) - {path.relative_to(root).parts[0] for path in paths}
    if empty:
        raise ValueError(f"{source}: no images ({', '.join(EXTENSIONS)}) in {_listed(sorted(empty))}")
    places = [(path, 0, path.stat().st_size) for path in paths]
    labels = [label_of[path.relative_to(root).parts[0]] for path in paths]
    return PhotoSet([str(path) for path in paths], places, labels, images, short_side_px)


def open_tar(path: Path, images: ImageConfig, short_side_px: int | None, classes: Sequence[str] | None) -> PhotoSet:
    """An uncompressed tar of images. The class is the member's folder, or its name up to the first underscore."""
    source = f"tar:{path}"
    if not path.is_file():
        raise ValueError(f"{source}: there is no such file")
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile() and _is_image(m.name)), key=lambda member: member.name)
    except tarfile.TarError as error:
        raise ValueError(f"{source} is no uncompressed tar ({error})") from error
    found = [_class_of(member.name) for member in members]
    label_of = _labels_of(sorted(set(found)), classes, images, source)
    places = [(path, member.offset_data, member.size) for member in members]
    names = [f"{member.name} in {path}" for member in members]
    return PhotoSet(names, places, [label_of[name] for name in found], images, short_side_px)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _class_of(member: str) -> str:
    *folders, name = Path(member).parts
    return folders[-1] if folders else name.partition("_")[0]


def _labels_of(found: Sequence[str], classes: Sequence[str] | None, images: ImageConfig, source: str) -> dict[str, int]:
    """The label of every class name found; raises ValueError with the difference to what is expected."""
    if classes is None:
        if len(found) != images.num_classes:
            raise ValueError(
                f"{source} has {len(found)} classes, images.num_classes={images.num_classes}; name the classes in the "
                "order of the labels in a file, one a line, and set data.classes to it to see which differ"
            )
        classes = found
    if len(classes) != images.num_classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"data.classes: {len(set(classes))} different names on {len(classes)} lines, "
            f"images.num_classes={images.num_classes} needs as many of each"
        )
    missing, extra = (sorted(a - b) for a, b in ((set(classes), set(found)), (set(found), set(classes))))
    if missing or extra:
        raise ValueError(f"{source}: missing classes: {_listed(missing)}; unknown classes: {_listed(extra)}")
    return {name: label for label, name in enumerate(classes)}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - MAX_NAMED
    return (", ".join(names[:MAX_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")
