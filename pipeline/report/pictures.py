"""Pictures that are part of a page: images and files as data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data.codec import encode_image, open_with_pillow

# Larger images are embedded as JPEG, which takes a tenth of the bytes; smaller ones with their exact pixels.
MAX_EXACT_PX, JPEG_QUALITY = 64, 85
# Larger files of pictures are embedded as WebP, which keeps their transparency, at most this wide.
MAX_FILE_BYTES, MAX_FILE_WIDTH, WEBP_QUALITY = 400_000, 1600, 85
# Color of a cell of a heat map; its opacity shows the value, so that it reads on a light and on a dark page.
HEAT_COLOR = (59, 130, 246)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether it is enlarged on a page, so that the edges of its pixels should stay sharp."""
        return max(self.width, self.height) <= MAX_EXACT_PX


def embed_image(image: Tensor) -> Picture:
    """The picture of uint8 (C, H, W)."""
    height, width = image.shape[1:]
    kind: str = "png" if max(height, width) <= MAX_EXACT_PX else "jpeg"
    data = encode_image(image, "png" if kind == "png" else "jpeg", JPEG_QUALITY)
    return Picture(uri=_uri(data, kind), width=width, height=height)


def embed_file(path: Path) -> Picture:
    """The picture in a PNG file; a large one is reduced, and loses detail. Raises ImageError when it is damaged."""
    data = path.read_bytes()
    with open_with_pillow(data, str(path)) as picture:
        if len(data) <= MAX_FILE_BYTES:
            return Picture(uri=_uri(data, "png"), width=picture.width, height=picture.height)
        reduced = picture.convert("RGBA")
    reduced.thumbnail((MAX_FILE_WIDTH, reduced.height))
    buffer = io.BytesIO()
    reduced.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return Picture(uri=_uri(buffer.getvalue(), "webp"), width=reduced.width, height=reduced.height)


def heat_map(shares: NDArray[np.float64]) -> Picture:
    """The picture of shares (H, W) in [0, 1], a pixel each; opacity is the square root, so that small ones show."""
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT_COLOR
    pixels[..., 3] = np.rint(255 * np.sqrt(shares))
    pixels[shares == 0] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Picture(uri=_uri(buffer.getvalue(), "png"), width=shares.shape[1], height=shares.shape[0])


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
