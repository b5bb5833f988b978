"""Images to file bytes and back: uint8 (C, H, W) with one or three channels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline.runtime.device import is_out_of_memory

ImageFormat = Literal["png", "webp", "jpeg"]
# Extensions of file names; readers choose their decoder by them.
EXTENSIONS: dict[str, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
PILLOW_MODES = {1: "L", 3: "RGB"}
# The most pixels of an image, from which on Pillow suspects a decompression bomb; as RGB they take 256 MiB.
MAX_PIXELS = 2**28 // 3
# Of torchvision, whose codecs are a library of their own, loaded at the first image.
NO_CODECS = "Couldn't load the image extension"


class ImageError(ValueError):
    """An image that cannot be read, by its name, with the reason."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name} is not a readable image ({reason})")
        self.reason = reason


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels (N, C, H, W) as float32 in [0, 1], contiguous, which is the memory format that all networks get.

    Decoders return channels-last images. An uncompiled network on the CPU would keep that format, in which convolutions
    of narrow networks write past their buffers on processors without AVX-512 (oneDNN, up to PyTorch 2.13 at least), and
    in which last bits differ.
    """
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, clipped and rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def encode_image(image: Tensor, image_format: ImageFormat, jpeg_quality: int = 95) -> bytes:
    """File bytes of uint8 (C, H, W). PNG and WebP are lossless; JPEG keeps full color resolution."""
    assert image.dtype == torch.uint8 and image.shape[0] in PILLOW_MODES
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array)
    buffer = io.BytesIO()
    if image_format == "png":
        picture.save(buffer, "PNG")
    elif image_format == "webp":
        picture.save(buffer, "WEBP", lossless=True, quality=100)
    else:
        picture.save(buffer, "JPEG", quality=jpeg_quality, subsampling="4:4:4")
    return buffer.getvalue()


def decode_image(data: bytes, channels: int, name: str) -> Tensor:
    """uint8 (channels, H, W) of a file that `encode_image` wrote; raises ImageError for other files.

    Raises OSError when torchvision cannot load its codecs. The result is channels-last. torchvision reads fewer formats
    than Pillow, in three quarters of its time.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as decode

    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.UNCHANGED  # a gray WebP has three equal channels
    try:
        pixels: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        if NO_CODECS in str(error):
            fix = "give the process more memory, or install torchvision again"
            raise OSError(f"torchvision cannot load its image codecs: {fix}") from error
        raise ImageError(name, error) from error
    return pixels[:channels]


def decode_with_pillow(data: bytes, channels: int, name: str) -> Tensor:
    """uint8 (channels, H, W) of any file that Pillow reads; raises ImageError for other files."""
    with open_with_pillow(data, name) as picture:
        array = np.array(picture.convert(PILLOW_MODES[channels]))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1).contiguous()


def read_size(data: bytes, name: str) -> tuple[int, int]:
    """(H, W) by the header of a file, of which `data` is the start; raises ImageError unless it is that of an image."""
    with open_with_pillow(data, name) as picture:
        return picture.height, picture.width


@contextmanager
def open_with_pillow(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image of a file, whose pixels may be decoded in the block; raises ImageError for other files."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
            yield picture
    except UnidentifiedImageError as error:  # its text is about a Python object
        raise ImageError(name, "no known format") from error
    except Exception as error:  # damaged files raise whatever the decoder at hand raises
        raise ImageError(name, error) from error
