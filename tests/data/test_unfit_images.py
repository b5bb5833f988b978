"""Sets of real images that are cut, damaged, hostile or no images: named with the fix before any work starts."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import codec, folders, npz
from pipeline.data.codec import MAX_PIXELS
from pipeline.data.image_sets import DataConfig, load_images
from pipeline.data.loader import check_images
from pipeline.models.config import ImageConfig

TWO_CLASSES = ImageConfig(channels=3, height=8, width=8, num_classes=2)
GRAY = ImageConfig(channels=1, height=28, width=28, num_classes=10)


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that states a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


def save_tree(root: Path) -> Path:
    """Two classes with three images each."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(png())
    return root


def save_tar(path: Path, root: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:  # without further headers
        for file in sorted(root.rglob("*.png")):
            tar.add(file, str(file.relative_to(root)))
    return path


def load(source: str, images: ImageConfig = TWO_CLASSES, **options):
    return load_images(DataConfig(test=source, **options), "test", images)


def message_of(source: str) -> str:
    """The error of the look at a set."""
    with pytest.raises(ValueError) as caught:
        check_images(load(source))
    return str(caught.value)


@pytest.mark.parametrize("num_whole", [0, 1, 3, 6])
@pytest.mark.parametrize("extra", [0, 100])
def test_a_tar_that_was_cut_between_members_is_refused(tmp_path, num_whole, extra):
    path = save_tar(tmp_path / "x.tar", save_tree(tmp_path / "tree"))
    content, member_bytes = path.read_bytes(), 1024  # a header and an image that fits a block
    path.write_bytes(content[: num_whole * member_bytes + extra])
    message = message_of(f"tar:{path}")
    assert f"tar:{path} is no uncompressed tar" in message
    if num_whole:
        assert f"cut or damaged after {num_whole} files, at byte {num_whole * member_bytes:,}" in message
        assert message.endswith("copy or download it again")


def test_a_tar_that_was_cut_in_a_member_or_has_a_damaged_header_is_refused(tmp_path):
    path = save_tar(tmp_path / "x.tar", save_tree(tmp_path / "tree"))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: 2 * 1024 + 700])
    assert f"tar:{path} is no uncompressed tar, or is damaged" in message_of(f"tar:{path}")
    content[2 * 1024] ^= 1
    path.write_bytes(content)
    message = message_of(f"tar:{path}")
    assert f"tar:{path} is no uncompressed tar, or is damaged (cut or damaged after 2 files, at" in message


def test_a_link_in_a_tar_is_not_left_out(tmp_path):
    root = save_tree(tmp_path / "tree")
    (root / "dog" / "3.png").hardlink_to(root / "dog" / "2.png")
    path = save_tar(tmp_path / "x.tar", root)
    assert message_of(f"tar:{path}") == (
        f"tar:{path}: dog/3.png is no file of its own; remove it, or put a file in its place"
    )


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_named_as_an_image_and_is_no_file_is_refused(tmp_path, make):
    root = save_tree(tmp_path / "tree")
    make(root / "dog" / "b.png")
    message = message_of(f"imagefolder:{root}")
    assert message.startswith(f"imagefolder:{root}: {root / 'dog' / 'b.png'} is no file of its own; remove")


@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
@pytest.mark.parametrize(
    ("name", "shown"), [(b"caf\xe9.png", r"caf\udce9.png"), (b"\x1b[31mred.png", r"\x1b[31mred.png")]
)
def test_a_name_that_cannot_be_shown_is_refused(tmp_path, kind, name, shown):
    root = save_tree(tmp_path / "tree")
    (root / "dog" / os.fsdecode(name)).write_bytes(png())
    source = root if kind == "imagefolder" else save_tar(tmp_path / "x.tar", root)
    message = message_of(f"{kind}:{source}")
    assert f"dog/{shown} has a name that is not UTF-8, or has control characters; rename it" in message


UNFIT = {
    "no image": (b"no image", "no known format"),
    "more pixels than Pillow allows": (bomb(40_000, 40_000), "could be decompression bomb"),
    "more pixels than we allow": (bomb(1_000, MAX_PIXELS // 1_000), "1000 x 89478 pixels, more than 10,000"),
    "a line": (bomb(1, 60_000), "1 x 60000 pixels, too narrow to be scaled to 8 x 8"),
    "cut": (png(64, 64)[:1000], "truncated"),
    "damaged": (png()[:45] + b"?" + png()[46:], "broken data stream"),
}


@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
@pytest.mark.parametrize(("content", "reason"), UNFIT.values(), ids=UNFIT)
def test_the_look_names_images_that_cannot_be_read(tmp_path, monkeypatch, kind, content, reason):
    if "narrow" in reason or "10,000" in reason:
        for module in (codec, folders):
            monkeypatch.setattr(module, "MAX_PIXELS", 10_000 if "10,000" in reason else 100_000)
    root = save_tree(tmp_path / "tree")
    (root / "dog" / "1.png").write_bytes(content)
    source = root if kind == "imagefolder" else save_tar(tmp_path / "x.tar", root)
    message = message_of(f"{kind}:{source}")
    assert "1 of 6 images cannot be read: " in message
    assert "dog/1.png" in message
    assert reason in message
    assert message.endswith("replace or remove them")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    root = save_tree(tmp_path / "tree")
    with open(root / "dog" / "1.png", "ab") as file:
        file.truncate(folders.MAX_FILE_BYTES + 1)
    assert "dog/1.png is larger than 268,435,456 bytes; replace or remove it" in message_of(f"imagefolder:{root}")


def test_the_look_reads_all_headers_and_decodes_evenly_spaced_images(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.loader.TRIED_IMAGES", 2)
    root = save_tree(tmp_path / "tree")
    damaged = root / "cat" / "1.png"
    damaged.write_bytes(png(64, 64)[:1000])
    images = load(f"imagefolder:{root}")
    check_images(images)
    damaged.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 6 images cannot be read: .*cat/1\.png"):
        check_images(images)


def test_the_look_of_a_run_of_some_classes_is_at_their_images(tmp_path):
    root = save_tree(tmp_path / "tree")
    (root / "bat").mkdir()
    (root / "bat" / "1.png").write_bytes(png())
    (root / "bat" / "2.png").write_bytes(b"no image")
    (tmp_path / "classes.txt").write_text("bat\ncat\ndog\n")
    data = DataConfig(test=f"imagefolder:{root}", class_names=str(tmp_path / "classes.txt"))
    images = ImageConfig(channels=3, height=8, width=8, num_classes=3)
    check_images(load_images(data, "test", images, (2, 1)))
    with pytest.raises(ValueError, match=r"bat/2\.png"):
        check_images(load_images(data, "test", images, (2, 0)))


def test_a_header_after_a_large_profile_is_read(tmp_path):
    root, noise = save_tree(tmp_path / "tree"), os.urandom(2 * folders.HEADER_BYTES)
    Image.new("RGB", (8, 8)).save(root / "dog" / "0.png", icc_profile=noise)
    check_images(load(f"imagefolder:{root}"))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_images_with_headers_of_every_format_pass(tmp_path, image_format):
    root, pixels = save_tree(tmp_path / "tree"), np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(root / "dog" / f"large.{image_format.lower()}", image_format, quality=100)
    assert (root / "dog" / f"large.{image_format.lower()}").stat().st_size > folders.HEADER_BYTES / 2
    check_images(load(f"imagefolder:{root}"))


def test_an_npz_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y.npy", "w") as file:
        np.save(file, np.zeros(1_000, np.int64))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.save(file, np.zeros((1_000, 8, 8, 3), np.uint8))
    monkeypatch.setattr(np, "load", lambda path: pytest.fail("it was read"))
    monkeypatch.setattr(npz, "free_memory_bytes", lambda device: 300_000)
    with pytest.raises(ValueError, match=r"bomb\.npz unpacks to 195\.6 KiB, and .* the 293\.0 KiB of free memory;"):
        load(f"npz:{path}")


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"", lambda content: b"?" * 2000])
def test_damaged_files_of_torchvision_are_named(tmp_path, damage):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels, labels = np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
    assert len(load("torchvision:MNIST", GRAY, folder=str(tmp_path)).labels) == 20
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"torchvision:MNIST is damaged or not complete under {tmp_path}, .* remove"):
        load("torchvision:MNIST", GRAY, folder=str(tmp_path))


@pytest.mark.skipif("DREAMDISTILL_DATA" not in os.environ, reason="DREAMDISTILL_DATA names no folder of real images")
@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("imagenet_samples/imagenet1k_1per_class_s256_q95.tar", 1000),
        ("imagenet_val20/ilsvrc2012_val_20classes_224.tar", 20),
        ("imagenet_val20/imagenette_train_800_224.tar", 10),
    ],
)
def test_real_archives_pass(name, num_classes):
    path = Path(os.environ["DREAMDISTILL_DATA"]) / name
    images = load(f"tar:{path}", ImageConfig(channels=3, height=224, width=224, num_classes=num_classes))
    images.check_headers(range(len(images.labels)))
    assert torch.bincount(images.labels).min() >= 1
