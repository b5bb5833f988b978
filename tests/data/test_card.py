"""Other libraries read the packed shards, also those of a set that has grown."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import ROUND_CLASSES, make_facts, write_grown_round

from pipeline.data.card import write_card
from pipeline.data.unpack import unpack


@pytest.fixture(scope="module", params=["packed", "grown"])
def read_round(request, packed_round, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """The folder of a set, and its pixels by number."""
    if request.param == "packed":
        return packed_round
    folder = tmp_path_factory.mktemp("grown_round") / "0"
    return folder, write_grown_round(folder)


def assert_same_images(images: dict[int, tuple[np.ndarray, int]], pixels: torch.Tensor) -> None:
    """`images` maps the number of an image to its pixels (H, W, C) and label; `pixels` is (N, C, H, W)."""
    assert sorted(images) == list(range(len(pixels)))
    for number, (image, label) in images.items():
        assert label == number % ROUND_CLASSES
        assert np.array_equal(image, pixels[number].permute(1, 2, 0).numpy())


def test_titles_are_no_markup_in_the_card(tmp_path):
    facts = make_facts(num_classes=2) | {"class_titles": ["a | <b>", "cat"]}
    shards = [{"class": label, "file": "x.tar", "count": 1} for label in range(2)]
    write_card(tmp_path, {**facts, "num_images": 2, "fingerprint": "", "scores": {}, "shards": shards})
    assert "| 0 | 0 | a \\| \\<b\\> |\n| 1 | 1 | cat |\n" in (tmp_path / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its tars
def test_webdataset_reads_every_image_with_its_label(read_round):
    import webdataset

    folder, pixels = read_round
    tars = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    reader = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__")
    images = {int(key.split("/")[1]): (np.asarray(image), label) for image, label, key in reader}
    assert_same_images(images, pixels)


def test_datasets_reads_every_image_with_its_label(read_round, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    folder, pixels = read_round
    dataset = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(dataset) == ["train"]
    images = {int(row["__key__"].split("/")[1]): (np.asarray(row["png"]), row["cls"]) for row in dataset["train"]}
    assert_same_images(images, pixels)
    assert {row["json"]["label"] for row in dataset["train"]} == set(range(ROUND_CLASSES))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its tars
def test_timm_reads_every_image_with_its_label(read_round):
    from timm.data import create_dataset

    folder, pixels = read_round
    dataset = create_dataset("wds/", root=str(folder), split="train")
    assert len(dataset) == len(pixels)
    by_content = {image.permute(1, 2, 0).numpy().tobytes(): number for number, image in enumerate(pixels)}
    images = {by_content[np.asarray(image).tobytes()]: (np.asarray(image), label) for image, label in dataset}
    assert_same_images(images, pixels)


def test_torchvision_reads_the_unpacked_images_with_their_labels(read_round, tmp_path):
    from torchvision.datasets import ImageFolder

    folder, pixels = read_round
    for path in (folder / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path, filter="data")
    dataset = ImageFolder(str(tmp_path))
    images = {int(Path(path).stem): (np.asarray(Image.open(path)), label) for path, label in dataset.samples}
    assert_same_images(images, pixels)


def test_torchvision_reads_what_make_unpack_writes(read_round, tmp_path):
    from torchvision.datasets import ImageFolder

    folder, pixels = read_round
    unpack([folder], tmp_path / "out")
    dataset = ImageFolder(str(tmp_path / "out/train"))
    images = {int(Path(path).stem): (np.asarray(Image.open(path)), label) for path, label in dataset.samples}
    assert_same_images(images, pixels)
