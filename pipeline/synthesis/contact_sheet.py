"""Contact sheets: rows of images as one picture, with titles, and marks for hits and misses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Least length of the longer side of a tile; smaller images are enlarged by a whole factor, to show their pixels.
MIN_TILE_PX = 64
GAP_PX, MARGIN_PX, FONT_PX, MARK_PX = 2, 10, 13, 16
MAX_TITLE_PX = 150
LINE_PX = FONT_PX + 7
FONT = ("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
# Transparent, but white where there is no transparency; and a gray with a contrast of 4 on white and on a dark page.
BACKGROUND, TEXT = (255, 255, 255, 0), "#767c87"
# Bluish green and vermilion of Okabe and Ito, which color-blind people tell apart; the shapes differ as well.
HIT, MISS = "#009e73", "#d55e00"


@dataclass(frozen=True, kw_only=True)
class Row:
    """uint8 images, each (C, H, W) of any size, beside each other; `hits` are marked, if there are any."""

    images: Sequence[Tensor]
    title: str = ""
    hits: Sequence[bool] = ()


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is written on a sheet: a caption, what a hit and what a miss is, and a title of each column."""

    caption: str
    hit: str = ""
    miss: str = ""
    columns: Sequence[str] = ()


def draw_sheet(rows: Sequence[Row], tile_size: tuple[int, int], text: Text) -> Image.Image:
    """The rows as one RGBA picture without background; each image is fitted to the (height, width) of a tile."""
    height, width = tile_size
    num_columns = max(len(row.images) for row in rows)
    titles = [_fitted(row.title, MAX_TITLE_PX) for row in rows]
    left = MARGIN_PX + max(_length(title) for title in titles) + (MARGIN_PX if any(titles) else 0)
    top = MARGIN_PX + LINE_PX * (2 if text.columns else 1)
    sheet_width = max(left + num_columns * (width + GAP_PX), MARGIN_PX + _caption_length(text)) + MARGIN_PX
    sheet = Image.new("RGBA", (sheet_width, top + len(rows) * (height + GAP_PX) + MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_caption(sheet, draw, text)
    for i, title in enumerate(text.columns):
        _write(draw, (left + i * (width + GAP_PX), top - LINE_PX), _fitted(title, width))
    for r, row in enumerate(rows):
        y = top + r * (height + GAP_PX)
        _write(draw, (MARGIN_PX, y + (height - LINE_PX) // 2), titles[r])
        for i, image in enumerate(row.images):
            x = left + i * (width + GAP_PX)
            sheet.paste(_tile(image, tile_size), (x, y))
            if row.hits:
                sheet.alpha_composite(_mark(row.hits[i]), (x + width - MARK_PX - 1, y + height - MARK_PX - 1))
    return sheet


def tile_size(image_size: tuple[int, int], max_tile_px: int) -> tuple[int, int]:
    """The (height, width) of the tile of an image of a size: a multiple of it if small, else at most `max_tile_px`."""
    side = max(image_size)
    if side > max_tile_px:
        return max(1, round(image_size[0] * max_tile_px / side)), max(1, round(image_size[1] * max_tile_px / side))
    factor = -(-MIN_TILE_PX // side)
    return image_size[0] * factor, image_size[1] * factor


def num_tiles(tile_px: int, room_px: int, at_most: int) -> int:
    """How many tiles of this side fit beside each other, at least 2."""
    return max(2, min(at_most, room_px // (tile_px + GAP_PX)))


def _tile(image: Tensor, size: tuple[int, int]) -> Image.Image:
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array).convert("RGB")
    is_reduced = picture.height > size[0] or picture.width > size[1]
    return picture.resize(size[::-1], Image.Resampling.BOX if is_reduced else Image.Resampling.NEAREST)


def _draw_caption(sheet: Image.Image, draw: ImageDraw.ImageDraw, text: Text) -> None:
    x = MARGIN_PX
    _write(draw, (x, MARGIN_PX // 2), text.caption)
    x += _length(text.caption)
    for is_hit, meaning in ((True, text.hit), (False, text.miss)):
        if meaning:
            sheet.alpha_composite(_mark(is_hit), (x + MARK_PX, MARGIN_PX // 2))
            _write(draw, (x + 2 * MARK_PX + GAP_PX, MARGIN_PX // 2), meaning)
            x += 2 * MARK_PX + GAP_PX + _length(meaning)


def _caption_length(text: Text) -> int:
    meanings = [meaning for meaning in (text.hit, text.miss) if meaning]
    return _length(text.caption) + sum(2 * MARK_PX + GAP_PX + _length(meaning) for meaning in meanings)


@cache
def _mark(is_hit: bool) -> Image.Image:
    """A check mark or a cross on a white disc, RGBA, drawn four times as large to have smooth edges."""
    side = 4 * MARK_PX
    mark = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(mark)
    draw.ellipse((0, 0, side - 1, side - 1), fill="#ffffff")
    check_mark, cross = [(25, 52, 43, 70, 76, 32)], [(30, 30, 70, 70), (70, 30, 30, 70)]  # x, y, x, y in percent
    for line in check_mark if is_hit else cross:
        points = [side * percent / 100 for percent in line]
        draw.line(points, fill=HIT if is_hit else MISS, width=side // 8, joint="curve")
    return mark.resize((MARK_PX, MARK_PX), Image.Resampling.LANCZOS)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings; the font of Pillow has no letters beyond ASCII."""
    matplotlib = find_spec("matplotlib")  # importing it takes a tenth of a second
    assert matplotlib is not None and matplotlib.origin is not None
    return ImageFont.truetype(str(Path(matplotlib.origin).parent.joinpath(*FONT)), FONT_PX)


def _write(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str) -> None:
    draw.text(position, text, fill=TEXT, font=_font())


def _length(text: str) -> int:
    return round(_font().getlength(text))


def _fitted(text: str, room_px: int) -> str:
    """The text, or as much of it as there is room for, with an ellipsis."""
    if _length(text) <= room_px:
        return text
    count = len(text)
    while count and _length(f"{text[:count]}…") > room_px:
        count -= 1
    return f"{text[:count]}…"
