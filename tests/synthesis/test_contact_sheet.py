"""Tiles show the pixels of their images; titles and marks are drawn, and marks differ in shape."""

import numpy as np
import pytest
import torch

from pipeline.synthesis import contact_sheet
from pipeline.synthesis.contact_sheet import (
    GAP_PX,
    LINE_PX,
    MARGIN_PX,
    MARK_PX,
    Row,
    Text,
    draw_sheet,
    num_tiles,
    tile_size,
)

SIZE = (64, 64)
TOP = MARGIN_PX + LINE_PX


def checkers(channels: int, height: int, width: int) -> torch.Tensor:
    """uint8 (C, H, W) of random pixels."""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def sheet(*rows: Row, caption="run", size=SIZE, **text) -> np.ndarray:
    return np.asarray(draw_sheet(rows, size, Text(caption=caption, **text)).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_pixel_by_pixel(channels):
    images = [checkers(channels, 8, 8), checkers(channels, 4, 4)]  # the latter of a phase at half the size
    picture = sheet(Row(images=images[:1]), Row(images=images[1:]))
    for r, image in enumerate(images):
        tile = picture[TOP + r * (64 + GAP_PX) :, MARGIN_PX:][:64, :64]
        factor = 64 // image.shape[1]
        expected = image.expand(3, -1, -1).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert np.array_equal(tile, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((8, 8), (64, 64)),
        ((28, 28), (84, 84)),
        ((64, 48), (64, 48)),
        ((1, 3), (22, 66)),
        ((224, 224), (224, 224)),
        ((512, 256), (256, 128)),
        ((1, 4000), (1, 256)),
    ],
)
def test_tiles_are_whole_multiples_of_small_images(image_size, expected):
    assert tile_size(image_size, 256) == expected


def test_a_sheet_has_no_background_and_its_tiles_are_opaque():
    black = torch.zeros(1, 8, 8, dtype=torch.uint8)
    alpha = np.asarray(draw_sheet([Row(images=[black], hits=[True])], SIZE, Text(caption="run")))[..., 3]
    tile = alpha[TOP : TOP + 64, MARGIN_PX : MARGIN_PX + 64]
    assert (tile == 255).all()
    assert (alpha[TOP:, : MARGIN_PX - 1] == 0).all()
    assert 0 < (alpha[:TOP] == 255).mean() < 0.5  # the caption


def test_large_images_are_reduced_by_averages():
    image = torch.zeros(1, 128, 128, dtype=torch.uint8)
    image[:, ::2] = 200
    tile = sheet(Row(images=[image]))[TOP:, MARGIN_PX:][:64, :64]
    assert (tile == 100).all()


def test_rows_may_differ_in_length():
    short, long = Row(images=[checkers(3, 8, 8)]), Row(images=[checkers(3, 8, 8)] * 3)
    picture = sheet(short, long)
    right = MARGIN_PX + 64 + GAP_PX
    assert (picture[TOP : TOP + 64, right:] == 255).all()
    assert (picture[TOP + 64 + GAP_PX :, right : right + 64] != 255).any()


def test_hits_and_misses_have_marks_of_other_shape_and_color():
    black = torch.zeros(1, 8, 8, dtype=torch.uint8)
    picture = sheet(Row(images=[black] * 2, hits=[True, False]), hit="hit", miss="miss").astype(int)
    left, below = MARGIN_PX + 63, TOP + 63
    marks = [picture[below - MARK_PX : below, x - MARK_PX : x] for x in (left, left + 64 + GAP_PX)]
    shapes = []
    for mark, is_hit in zip(marks, (True, False), strict=True):
        red, green, blue = mark[..., 0], mark[..., 1], mark[..., 2]
        shapes.append((green > red + 60) if is_hit else (red > blue + 60))
        assert shapes[-1].sum() > 10
    assert (shapes[0] ^ shapes[1]).sum() > 10
    assert (picture[: TOP - 1].min(2) < 200).any()


def test_the_sheet_is_as_wide_as_its_caption():
    row = Row(images=[checkers(1, 8, 8)])
    narrow, wide = (sheet(row, caption=caption) for caption in ("run", "a long caption " * 9))
    assert wide.shape[1] > 2 * narrow.shape[1]
    assert (wide[:, -MARGIN_PX // 2 :] == 255).all()
    assert (wide[:TOP, -3 * MARGIN_PX :] < 128).any()


def test_titles_of_rows_and_columns_are_drawn_and_cut_to_their_room():
    images = [checkers(1, 8, 8)] * 2
    short, long = (sheet(Row(images=images, title=title), columns=["0", "1,000"]) for title in ("cat", "cat" * 99))
    assert short.shape[1] < long.shape[1] <= 2 * MARGIN_PX + contact_sheet.MAX_TITLE_PX + MARGIN_PX + 2 * (64 + GAP_PX)
    header = short[MARGIN_PX + LINE_PX : MARGIN_PX + 2 * LINE_PX]
    assert (header < 128).any()
    title = short[MARGIN_PX + 2 * LINE_PX :, : short.shape[1] - 2 * (64 + GAP_PX) - 2 * MARGIN_PX]
    assert (title < 128).any()


def test_letters_beyond_ascii_have_glyphs():
    font = contact_sheet._font()
    boxes = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != boxes for letter in "éüßøñΩЖ…")


@pytest.mark.parametrize(("tile_px", "expected"), [(64, 15), (224, 4), (900, 2)])
def test_as_many_tiles_as_fit(tile_px, expected):
    assert num_tiles(tile_px, 1000, 15) == expected
