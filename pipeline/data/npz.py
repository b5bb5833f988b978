"""Images and labels in an npz file."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.runtime.hardware import free_memory_bytes
from pipeline.runtime.quantities import size

# The pixels are there twice for a moment: as they are read, and in the order of dimensions of PyTorch.
COPIES = 2


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, C, H, W) and labels int64 (N,) of `x` uint8 (N, H, W, C) and `y`, integers (N,).

    Raises ValueError for a missing or damaged file, for arrays of other types or shapes, and, before they are unpacked,
    for arrays that the memory cannot hold.
    """
    if not path.is_file():
        raise ValueError(f"npz:{path}: there is no such file; correct the path")
    with _explain_damage(path), zipfile.ZipFile(path) as archive:
        num_bytes = sum(archive.getinfo(f"{name}.npy").file_size for name in ("x", "y"))
    if COPIES * num_bytes > (free_bytes := free_memory_bytes(torch.device("cpu"))):
        raise ValueError(
            f"npz:{path} unpacks to {size(num_bytes)}, and reading it takes {COPIES} times that, more than the "
            f"{size(free_bytes)} of free memory; use imagefolder:PATH or tar:PATH, which are read image by image"
        )
    with _explain_damage(path), np.load(path) as arrays:
        x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8 or x.ndim != 4 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(
            f"npz:{path}: x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}; it needs x uint8 (N, H, W, C) and y "
            "integers (N,)"
        )
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y.astype(np.int64))


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged archives raise whatever the decoder at hand raises
        raise ValueError(f"npz:{path} must hold the arrays x and y ({error})") from error
