"""The official validation archive: its labels, its class folders, and what is said about damaged or other files."""

import errno
import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets.imagenet as torchvision_imagenet
from PIL import Image
from scipy.io import savemat

from pipeline.data.image_sets import DataConfig, load_images
from pipeline.data.imagenet import read_wnids, sort_validation_images
from pipeline.models.config import ImageConfig

WNIDS = [f"n{i:08d}" for i in range(5)]
# Class numbers are not in the order of the wnids; number 6 is a node with children, no class.
WNID_OF = {1: WNIDS[3], 2: WNIDS[0], 3: WNIDS[4], 4: WNIDS[1], 5: WNIDS[2]}
NUMBERS = [4, 1, 5, 2, 3, 1, 1, 4]
LABELS = [WNID_OF[number] for number in NUMBERS]
IMAGES = ImageConfig(channels=3, height=8, width=8, num_classes=len(WNIDS))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def meta_file() -> bytes:
    """A `meta.mat` of the layout that the devkit has."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "wordnet_height")
    synsets = np.zeros((len(WNID_OF) + 1, 1), dtype=[(name, object) for name in fields])
    for row, (number, wnid) in enumerate([*WNID_OF.items(), (6, "n99999999")]):
        synsets[row, 0] = (number, wnid, "a name, another", "what it is", 2 if number == 6 else 0, 0)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    return file.getvalue()


def save_devkit(path: Path, numbers=NUMBERS, *, without: str = "", meta: bytes | None = None) -> Path:
    files = {
        "readme.txt": b"",
        "data/meta.mat": meta or meta_file(),
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{number}\n" for number in numbers).encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            if not without or without not in name:
                add(tar, f"ILSVRC2012_devkit_t12/{name}", content)
    return path


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 12, 3), value, np.uint8)).save(file, "jpeg", quality=95)
    return file.getvalue()


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def save_archive(path: Path, numbers=(1, 2, 3, 4, 5, 6, 7, 8), *, folder: str = "") -> Path:
    """A tar in which image i has the value 20 i."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            add(tar, f"{folder}{image_name(number)}", jpeg(20 * number))
    return path


def test_labels_of_the_devkit_are_those_of_torchvision(tmp_path, monkeypatch):
    devkit = save_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    md5 = hashlib.md5(devkit.read_bytes()).hexdigest()
    monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, "devkit", (devkit.name, md5))
    torchvision_imagenet.parse_devkit_archive(tmp_path)
    assert read_wnids(devkit) == LABELS == torchvision_imagenet.load_meta_file(tmp_path)[1]


def test_labels_can_be_lines_of_wnids(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    assert read_wnids(tmp_path / "labels.txt") == LABELS


@pytest.mark.parametrize("folder", ["", "./", "val/"])
def test_images_lie_in_the_folder_of_their_label(tmp_path, folder):
    order = random.Random(0).sample(range(1, 9), 8)
    archive = save_archive(tmp_path / "val.tar", order, folder=folder)
    sort_validation_images(archive, LABELS, tmp_path / "new" / "val")
    test = load_images(DataConfig(test=f"imagefolder:{tmp_path / 'new' / 'val'}"), "test", IMAGES)
    values = test.batch(range(8))[:, 0, 0, 0]
    assert [LABELS[round(value / 20) - 1] for value in values.tolist()] == [WNIDS[i] for i in test.labels.tolist()]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"val"}


NO_DEVKIT = {
    "absent": (None, "there is no file"),
    "the ground truth alone": (b"490\n361\n", "holds class numbers; only the devkit names them"),
    "another text": (b"n00000001\nILSVRC2012_val_00000002.JPEG 65\n", "entry 2 of .* is 'ILSVRC2012_val_00000'"),
    "empty": (b"", "names no image"),
    "no tar": (b"\x1f\x8b no gzip file", "is damaged"),
}


@pytest.mark.parametrize(("content", "message"), NO_DEVKIT.values(), ids=NO_DEVKIT)
def test_other_files_are_no_devkit(tmp_path, content, message):
    path = tmp_path / "devkit"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^--devkit: .*{message}"):
        read_wnids(path)


def test_a_devkit_without_its_files_is_refused(tmp_path):
    for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
        devkit = save_devkit(tmp_path / "devkit.tar.gz", without=name)
        with pytest.raises(ValueError, match=f"has no {name}; use ILSVRC2012_devkit_t12"):
            read_wnids(devkit)


@pytest.mark.parametrize("number", [6, 7, "x"])
def test_a_class_without_a_name_is_refused(tmp_path, number):
    devkit = save_devkit(tmp_path / "devkit.tar.gz", [1, number])
    with pytest.raises(ValueError, match=f"has class {number}, which meta.mat does not name"):
        read_wnids(devkit)


@pytest.mark.parametrize("meta", [b"no mat", meta_file()[:200]])
def test_a_damaged_meta_file_is_refused(tmp_path, meta):
    devkit = save_devkit(tmp_path / "devkit.tar.gz", meta=meta)
    with pytest.raises(ValueError, match=r"meta\.mat in .* cannot be read"):
        read_wnids(devkit)


def test_a_devkit_that_was_cut_is_damaged(tmp_path):
    devkit = save_devkit(tmp_path / "devkit.tar.gz")
    content = devkit.read_bytes()
    for size in [*range(20, len(content), 31), len(content) - 1]:
        devkit.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is damaged"):
            read_wnids(devkit)


def require_refusal(archive: Path, message: str, folder: Path) -> None:
    """Sorting raises the message and leaves nothing behind."""
    before = sorted(archive.parent.iterdir())
    with pytest.raises(ValueError, match=message):
        sort_validation_images(archive, LABELS, folder)
    assert sorted(archive.parent.iterdir()) == before


def test_an_archive_that_was_cut_anywhere_is_refused_and_nothing_is_left(tmp_path):
    archive = save_archive(tmp_path / "val.tar")
    content = archive.read_bytes()
    end = content.rindex(b"\xff\xd9") + 2
    for size in [*range(0, end, 300), end - 1]:
        archive.write_bytes(content[:size])
        require_refusal(archive, "^--tar: .*download it again", tmp_path / "val")


def test_bytes_that_are_no_tar_are_refused(tmp_path):
    (tmp_path / "val.tar").write_bytes(b"no tar" * 1000)
    require_refusal(tmp_path / "val.tar", "is no tar, or damaged at its start", tmp_path / "val")


def test_a_disk_that_fails_is_blamed_on_the_archive(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    archive = save_archive(tmp_path / "val.tar")
    monkeypatch.setattr(tarfile.ExFileObject, "read", fail)
    require_refusal(archive, "^--tar: .*val.tar cannot be read at ILSVRC2012_val_00000001.JPEG", tmp_path / "val")


def test_a_missing_archive_is_named(tmp_path):
    require_refusal(tmp_path / "val.tar", "--tar: there is no file", tmp_path / "val")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2, 3, 4, 5, 6, 8], "ends after 7 of 8 images; number 7 is missing"),
        (range(1, 10), "has 8 labels, and none is left for ILSVRC2012_val_00000009.JPEG"),
        (range(8), "none is left for ILSVRC2012_val_00000000.JPEG"),
        ([1, 1, 2, 3, 4, 5, 6, 7, 8], "none is left for ILSVRC2012_val_00000001.JPEG"),
    ],
)
def test_every_label_needs_one_image(tmp_path, numbers, message):
    require_refusal(save_archive(tmp_path / "val.tar", numbers), message, tmp_path / "val")


@pytest.mark.parametrize("name", ["n01440764.tar", "../ILSVRC2012_val_00000001.png"])
def test_another_archive_is_named(tmp_path, name):
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        add(tar, name, jpeg(0))
    require_refusal(tmp_path / "val.tar", f"holds {name}; the images of ILSVRC2012_img_val.tar", tmp_path / "val")


@pytest.mark.parametrize("content", [b"", b"\0" * 600])
def test_an_image_that_is_no_jpeg_is_named(tmp_path, content):
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        add(tar, image_name(1), content)
    require_refusal(tmp_path / "val.tar", f"{image_name(1)} in .* is no JPEG image", tmp_path / "val")


def test_a_folder_with_files_stays_as_it_is(tmp_path):
    archive, folder = save_archive(tmp_path / "val.tar"), tmp_path / "val"
    folder.mkdir()
    sort_validation_images(archive, LABELS, folder)  # into an empty one
    with pytest.raises(ValueError, match=f"--folder: {folder} holds files already"):
        sort_validation_images(archive, LABELS, folder)
    assert len(list(folder.rglob("*.JPEG"))) == 8


def test_what_a_killed_process_left_is_replaced(tmp_path):
    stale = tmp_path / "val.tmp" / "n99999999"
    stale.mkdir(parents=True)
    (stale / image_name(9)).write_bytes(jpeg(0))
    sort_validation_images(save_archive(tmp_path / "val.tar"), LABELS, tmp_path / "val")
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == sorted(set(LABELS))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    require_refusal(
        save_archive(tmp_path / "val.tar"), "--folder: .*file/val was not written", tmp_path / "file" / "val"
    )


@pytest.mark.skipif("DREAMDISTILL_DATA" not in os.environ, reason="DREAMDISTILL_DATA names no folder of real images")
def test_real_validation_images_get_their_labels(tmp_path):
    source = Path(os.environ["DREAMDISTILL_DATA"]) / "imagenet_val20" / "ilsvrc2012_val_20classes_224.tar"
    with tarfile.open(source) as tar:
        members = sorted((m for m in tar if m.isfile()), key=lambda member: Path(member.name).name)
        files = [tar.extractfile(member).read() for member in members]
    labels = [Path(member.name).parent.name for member in members]
    with tarfile.open(tmp_path / "flat.tar", "w") as tar:
        for i, content in enumerate(files, start=1):
            add(tar, image_name(i), content)
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    sort_validation_images(tmp_path / "flat.tar", read_wnids(tmp_path / "labels.txt"), tmp_path / "val")
    images = ImageConfig(channels=3, height=224, width=224, num_classes=20)
    flat, folders = (
        load_images(DataConfig(test=test), "test", images)
        for test in (f"tar:{source}", f"imagefolder:{tmp_path / 'val'}")
    )
    assert folders.labels.tolist() == flat.labels.tolist()
    assert folders.labels.bincount().tolist() == [50] * 20
    assert torch.equal(folders.batch(range(0, 1000, 97)), flat.batch(range(0, 1000, 97)))
