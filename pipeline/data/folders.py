"""Real images of any size, in class folders or in a tar, fitted to the image size of a run."""

import tarfile
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.codec import decode_with_pillow
from pipeline.models.config import ImageConfig
from pipeline.runtime.files import read_range

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# The most names that a message lists; it counts the others.
MAX_NAMED = 5


class FolderImages:
    """Encoded images at (file, offset, size); a read decodes, scales and center-crops them.

    `names`, `locations` and `labels`, int64 (N,), are in the same order. The short side is scaled to `short_side_px`
    before the crop, by default to the least that covers the image size.
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
                f"{len(unreadable)} of {len(self.names)} images cannot be read: {_listed(unreadable)}; replace or "
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


def open_folder(
    root: Path, images: ImageConfig, short_side_px: int | None, classes: Sequence[str] | None
) -> FolderImages:
    """An `imagefolder`: one sub-folder per class. Labels follow `classes`, by default the sorted folder names."""
    source = f"imagefolder:{root}"
    if not root.is_dir():
        raise ValueError(f"{source}: there is no such folder")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    label_of = _labels_of(folders, classes, images, source)
    paths = sorted(path for name in folders for path in (root / name).rglob("*") if _is_image(path.name))
    empty = set(folders) - {path.relative_to(root).parts[0] for path in paths}
    if empty:
        raise ValueError(f"{source}: no images ({', '.join(EXTENSIONS)}) in {_listed(sorted(empty))}")
    locations = [(path, 0, path.stat().st_size) for path in paths]
    labels = [label_of[path.relative_to(root).parts[0]] for path in paths]
    return FolderImages([str(path) for path in paths], locations, labels, images, short_side_px)


def open_tar(path: Path, images: ImageConfig, short_side_px: int | None, classes: Sequence[str] | None) -> FolderImages:
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
    label_of = _labels_of(sorted(set(class_names)), classes, images, source)
    locations = [(path, member.offset_data, member.size) for member in members]
    names = [f"{member.name} in {path}" for member in members]
    return FolderImages(names, locations, [label_of[name] for name in class_names], images, short_side_px)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _class_of(member: str) -> str:
    *folders, name = Path(member).parts
    return folders[-1] if folders else name.partition("_")[0]


def _labels_of(names: Sequence[str], classes: Sequence[str] | None, images: ImageConfig, source: str) -> dict[str, int]:
    """The label of each of the class `names` of a source; raises ValueError with their difference to `classes`."""
    if classes is None:
        if len(names) != images.num_classes:
            raise ValueError(
                f"{source} has {len(names)} classes, images.num_classes={images.num_classes}; to see which differ, set "
                "data.classes to a file that names the classes in the order of the labels, one per line"
            )
        classes = names
    if len(classes) != images.num_classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"data.classes: {len(set(classes))} different names on {len(classes)} lines, "
            f"images.num_classes={images.num_classes} needs as many of each"
        )
    missing, unknown = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
    if missing or unknown:
        raise ValueError(f"{source}: missing classes: {_listed(missing)}; unknown classes: {_listed(unknown)}")
    return {name: label for label, name in enumerate(classes)}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - MAX_NAMED
    return (", ".join(names[:MAX_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")
