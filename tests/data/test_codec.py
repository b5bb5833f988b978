"""Image codecs: what is said when torchvision, not the image, is at fault."""

import pytest
import torch
import torchvision.io.image

from pipeline.data.codec import ImageError, decode_image, encode_image


@pytest.fixture
def png():
    return encode_image(torch.zeros(3, 8, 8, dtype=torch.uint8), "png")


def test_codecs_that_cannot_be_loaded_are_no_damage(png, monkeypatch):
    monkeypatch.setattr(torchvision.io.image, "_has_image_ops", lambda: False)
    with pytest.raises(OSError, match="torchvision cannot load its image codecs: give the process more memory"):
        decode_image(png, 3, "1.png")


def test_a_lack_of_memory_is_no_damage(png, monkeypatch):
    def decode(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes.")

    monkeypatch.setattr(torchvision.io, "decode_image", decode)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        decode_image(png, 3, "1.png")


def test_a_damaged_image_is_named(png):
    with pytest.raises(ImageError, match=r"1\.png is not a readable image"):
        decode_image(png[:40], 3, "1.png")
