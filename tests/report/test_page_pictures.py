"""Pictures as data URIs."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from pipeline.report.pictures import MAX_FILE_WIDTH, embed_file, embed_image, heat_map


def open_uri(uri: str) -> Image.Image:
    header, _, data = uri.partition(",")
    assert header in ("data:image/png;base64", "data:image/jpeg;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_keep_their_pixels_and_large_ones_are_jpeg():
    small = torch.randint(0, 256, (1, 8, 12), dtype=torch.uint8)
    picture = embed_image(small)
    assert (picture.width, picture.height, picture.is_small) == (12, 8, True)
    assert np.array_equal(np.asarray(open_uri(picture.uri)), small[0].numpy())
    large = embed_image(torch.full((3, 96, 96), 77, dtype=torch.uint8))
    assert (open_uri(large.uri).format, large.is_small) == ("JPEG", False)
    assert abs(int(np.asarray(open_uri(large.uri)).mean()) - 77) <= 1


def test_file_is_embedded_as_it_is_unless_it_is_large(tmp_path):
    path = tmp_path / "strip.png"
    Image.fromarray(np.zeros((20, 50, 3), dtype=np.uint8)).save(path)
    picture = embed_file(path)
    assert base64.b64decode(picture.uri.partition(",")[2]) == path.read_bytes()
    assert (picture.width, picture.height) == (50, 20)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 3200, 3), dtype=np.uint8)).save(path)
    picture = embed_file(path)
    assert (picture.width, picture.height) == (MAX_FILE_WIDTH, 200)
    assert len(picture.uri) < path.stat().st_size
    assert open_uri(picture.uri).size == (MAX_FILE_WIDTH, 200)


def test_transparency_of_a_large_file_is_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 3200, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, 1600:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    alpha = np.asarray(open_uri(embed_file(tmp_path / "strip.png").uri))[..., 3]
    assert (alpha[:, :790] == 255).all()
    assert (alpha[:, 810:] == 0).all()


def test_heat_map_shows_shares_as_opacity():
    picture = heat_map(np.array([[0.0, 0.25], [1.0, 0.0]]))
    assert np.asarray(open_uri(picture.uri))[:, :, 3].tolist() == [[0, 128], [255, 0]]
