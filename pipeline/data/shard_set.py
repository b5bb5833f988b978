"""A map-style view of class-organized shards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.codec import decode_image
from pipeline.data.damage import check_sizes
from pipeline.data.shards import read_manifest
from pipeline.runtime.files import read_range


class ShardSet:
    """A map-style data set of the shards of one folder or several; reads images by offset and does not scan the tars.

    `keys` are `CLASS/NUMBER`, `labels` int64 (N,). Raises ShardError when a manifest or a shard is missing, or when a
    shard differs in size from the manifest.
    """

    def __init__(self, folders: Path | str | Sequence[Path | str]) -> None:
        self.keys: list[str] = []
        self.labels = torch.empty(0, dtype=torch.int64)
        self._locations: list[tuple[Path, int, int]] = []
        for folder in [folders] if isinstance(folders, Path | str) else folders:
            self.add(Path(folder))

    def add(self, folder: Path, labels_of: Sequence[int] | None = None) -> None:
        """Append the images of one more set; `labels_of` gives other labels in place of its own 0, 1, ..."""
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        labels: list[int] = []
        for entry in manifest["shards"]:
            path = folder / entry["file"]
            self.keys += entry["keys"]
            self._locations += [(path, o, s) for o, s in zip(entry["offsets"], entry["sizes"], strict=True)]
            label = entry["class"] if labels_of is None else labels_of[entry["class"]]
            labels += [label] * entry["count"]
        self.labels = torch.cat([self.labels, torch.tensor(labels, dtype=torch.int64)])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """uint8 (C, H, W) and label of one image."""
        return self._read(index), int(self.labels[index])

    def batch(self, indices: Sequence[int]) -> Tensor:
        """uint8 (len(indices), C, H, W) of these images, channels-last, as the decoder returns them."""
        channels, height, width = self.shape
        pixels = torch.empty(len(indices), height, width, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, index in zip(pixels, indices, strict=True):
            image.copy_(self._read(index))
        return pixels

    def _read(self, index: int) -> Tensor:
        path, offset, size = self._locations[index]
        name = f"{self.keys[index]} in {path} (see `make verify`)"
        image = decode_image(read_range(path, offset, size), self.shape[0], name)
        if image.shape != self.shape:
            raise ValueError(f"{name} has (C, H, W) = {tuple(image.shape)}, but the manifest states {self.shape}")
        return image
