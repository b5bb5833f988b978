"""Real images in folders and tars: labels, scaling, cropping, and errors."""

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.folders import FolderImages, FolderOptions, open_folder
from pipeline.data.image_sets import DataConfig, load_images, source_identity
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError

COLOR = ImageConfig(channels=3, height=8, width=8, num_classes=12)


def save_folder(root: Path, class_names, size=(8, 8)) -> Path:
    """Two PNGs per class; the first channel is 20 times the index of the class, the second the number of the image."""
    for i, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for j in range(2):
            color = np.full((*size, 3), [20 * i, j, 7], np.uint8)
            Image.fromarray(color).save(root / name / f"{j}.png")
    return root


def test_imagefolder_labels_follow_sorted_folder_names(tmp_path):
    names = [f"class-{letter}" for letter in "lkjihgfedcba"]
    root = save_folder(tmp_path / "images", names)
    images = load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR)
    assert images.labels.tolist() == [label for label in range(12) for _ in range(2)]
    pixels = images.batch(range(24))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (24, 3, 8, 8)
    assert pixels[:, 0, 0, 0].tolist() == [20 * (11 - label) for label in images.labels.tolist()]
    assert pixels[:, 1, 7, 7].tolist() == [0, 1] * 12


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (5, 9)])
def test_imagefolder_scales_short_side_and_crops_center(tmp_path, size):
    root = save_folder(tmp_path / "images", [f"{i:02d}" for i in range(12)], size)
    pixels = load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR).batch([0, 23])
    assert pixels.shape == (2, 3, 8, 8)
    assert pixels[1].flatten(1).unique(dim=1).tolist() == [[220], [1], [7]]


@pytest.mark.parametrize("num_folders", [1, 11, 13])
def test_imagefolder_with_wrong_number_of_classes_raises(tmp_path, num_folders):
    root = save_folder(tmp_path / "images", [f"{i:02d}" for i in range(num_folders)])
    with pytest.raises(ValueError, match=f"imagefolder:{root} has {num_folders} classes, images.num_classes=12"):
        load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR)


@pytest.mark.parametrize("content", [None, [], ["empty"]])
def test_imagefolder_without_images_raises(tmp_path, content):
    root = tmp_path / "images"
    for name in () if content is None else (".", *content):
        (root / name).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=f"imagefolder:{root}"):
        load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR)


def test_imagefolder_covers_a_rectangular_image_size(tmp_path):
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(np.full((20, 20, 3), 200, np.uint8)).save(tmp_path / str(label) / "0.png")
    wide = ImageConfig(channels=3, height=8, width=16, num_classes=2)
    pixels = load_images(DataConfig(test=f"imagefolder:{tmp_path}"), "test", wide).batch([0])
    assert pixels.shape == (1, 3, 8, 16)
    assert pixels.unique().tolist() == [200]


def save_tar(path: Path, names, size=(8, 8)) -> Path:
    """A tar of PNGs; the first channel of image i is 20 i."""
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            file = path.with_name("image.png")
            Image.fromarray(np.full((*size, 3), [20 * i, 0, 7], np.uint8)).save(file)
            tar.add(file, name)
    return path


@pytest.mark.parametrize("pattern", ["n{:02d}_some_name.png", "val/n{:02d}/7.png"])
def test_tar_class_is_the_folder_or_the_name_prefix(tmp_path, pattern):
    path = save_tar(tmp_path / "x.tar", [pattern.format(11 - i) for i in range(12)] + ["readme.txt"])
    images = load_images(DataConfig(test=f"tar:{path}"), "test", COLOR)
    assert images.labels.tolist() == list(range(12))
    assert images.batch(range(12))[:, 0, 0, 0].tolist() == [20 * (11 - label) for label in range(12)]


@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
def test_labels_follow_the_class_names(tmp_path, kind):
    names = [f"n{i:02d}" for i in range(12)]
    if kind == "tar":
        source = save_tar(tmp_path / "x.tar", [f"{name}_x.png" for name in names])
    else:
        source = save_folder(tmp_path / "tree", names)
    order = [*reversed(names)]
    (tmp_path / "classes.txt").write_text("".join(f"{name} a comment\n" for name in order))
    data = DataConfig(test=f"{kind}:{source}", class_names=str(tmp_path / "classes.txt"))
    images = load_images(data, "test", COLOR)
    class_indices = [int(value) // 20 for value in images.batch(range(len(images.labels)))[:, 0, 0, 0]]
    assert [order[label] for label in images.labels.tolist()] == [names[i] for i in class_indices]


CLASS_LISTS = {
    "other names": (
        [*(f"n{i:02d}" for i in range(2, 12)), "cat", "dog"],
        "n00, n01 not named in the file of data.class_names; remove these folders or name them",
    ),
    "too few": (
        [f"n{i:02d}" for i in range(11)],
        "has 11 different names on 11 lines, images.num_classes=12",
    ),
    "twice": ([*(f"n{i:02d}" for i in range(11)), "n00"], "has 11 different names on 12 lines"),
}


@pytest.mark.parametrize(("class_names", "message"), CLASS_LISTS.values(), ids=CLASS_LISTS)
def test_class_list_mismatch_raises_with_the_difference(tmp_path, class_names, message):
    root = save_folder(tmp_path / "tree", [f"n{i:02d}" for i in range(12)])
    (tmp_path / "classes.txt").write_text("\n".join(class_names))
    with pytest.raises(ValueError, match=message):
        load_images(DataConfig(test=f"imagefolder:{root}", class_names=str(tmp_path / "classes.txt")), "test", COLOR)


def some_classes(tmp_path: Path, present: list[str], kind: str = "imagefolder") -> DataConfig:
    """Images of the `present` ones of twelve named classes."""
    names = [f"n{i:02d}" for i in range(12)]
    (tmp_path / "classes.txt").write_text("".join(f"{name} title of {name}\n" for name in names))
    if kind == "tar":
        source = save_tar(tmp_path / "x.tar", [f"{name}/{i}.png" for i, name in enumerate(present)])
    else:
        source = save_folder(tmp_path / "tree", present)
    return DataConfig(test=f"{kind}:{source}", class_names=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
def test_a_run_of_some_classes_reads_their_images_alone(tmp_path, kind):
    data = some_classes(tmp_path, ["n05", "n02", "n09"], kind)
    images = load_images(data, "test", COLOR, classes=(9, 5))
    copies = 1 if kind == "tar" else 2
    assert images.labels.tolist() == [1] * copies + [0] * copies  # in the order of the folders n05, n09
    assert images.batch(range(2 * copies))[:, 0, 0, 0].tolist() == [0] * copies + [40] * copies
    assert images.batch([copies])[:, 0, 0, 0].tolist() == [40]


def test_a_subset_of_the_classes_raises_in_a_run_of_all(tmp_path):
    data = some_classes(tmp_path, ["n05", "n02"])
    with pytest.raises(ValueError, match=r"no images of n00, n01, n03, n04, n06 and 5 more; add them"):
        load_images(data, "test", COLOR)


def test_classes_without_test_images_are_warned_of(tmp_path):
    data = some_classes(tmp_path, ["n05", "n02"])
    with pytest.warns(UserWarning, match=r"^data\.test: .* no image of 1 of the .*scored \(n03\); add images"):
        images = load_images(data, "test", COLOR, classes=(5, 3, 2))
    assert sorted(set(images.labels.tolist())) == [0, 2]
    with pytest.raises(ValueError, match=r"^data\.test: .* holds no image of the .*\(n03, n04\); name other"):
        load_images(data, "test", COLOR, classes=(3, 4))


def test_an_empty_folder_is_a_class_without_images_in_a_run_of_some(tmp_path):
    data = some_classes(tmp_path, ["n05", "n02"])
    for name in ("n03", "n07"):
        (tmp_path / "tree" / name).mkdir()
    assert load_images(data, "test", COLOR, classes=(5, 2)).labels.tolist() == [1, 1, 0, 0]
    with pytest.warns(UserWarning, match=r"scored \(n03\)"):
        load_images(data, "test", COLOR, classes=(5, 3))


def test_a_folder_of_no_known_class_raises_in_a_run_of_some(tmp_path):
    data = some_classes(tmp_path, ["n05", "n02", "cat"])
    with pytest.raises(ValueError, match=r"cat not named in the file of data\.class_names"):
        load_images(data, "test", COLOR, classes=(5, 2))


def test_missing_class_list_raises(tmp_path):
    root = save_folder(tmp_path / "tree", [f"n{i:02d}" for i in range(12)])
    with pytest.raises(ValueError, match=r"data.class_names: there is no file nowhere\.txt"):
        load_images(DataConfig(test=f"imagefolder:{root}", class_names="nowhere.txt"), "test", COLOR)


def test_class_without_images_raises(tmp_path):
    root = save_folder(tmp_path / "tree", [f"n{i:02d}" for i in range(12)])
    for path in (root / "n03").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no images .* in n03"):
        load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR)


@pytest.mark.parametrize("damage", [b"", b"no image"])
def test_unreadable_images_are_counted_and_named(tmp_path, damage):
    root = save_folder(tmp_path / "tree", [f"n{i:02d}" for i in range(12)])
    for name in ("n02/1.png", "n07/0.png"):
        (root / name).write_bytes(damage)
    images = load_images(DataConfig(test=f"imagefolder:{root}"), "test", COLOR)
    with pytest.raises(ValueError, match=r"2 of 24 .*n02/1\.png \(no known format\), .*n07/0\.png \(.*\); replace"):
        images.batch(range(24))


def test_unreadable_images_are_counted_by_one_thread(tmp_path, monkeypatch):
    root = save_folder(tmp_path / "tree", [f"n{i:02d}" for i in range(12)])
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    images = open_folder(root, COLOR, FolderOptions())
    counted, count = [], FolderImages._faults
    monkeypatch.setattr(FolderImages, "_faults", lambda self, *arguments: counted.append(0) or count(self, *arguments))
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(images.batch, [i]) for i in range(24)]
    assert all("24 of 24 images cannot be read" in str(future.exception()) for future in futures)
    assert len(counted) == 1


def test_short_side_is_scaled_before_the_center_crop(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    for label in range(12):
        (tmp_path / f"{label:02d}").mkdir()
        Image.fromarray(np.tile(ramp[None, :, None], (32, 1, 3))).save(tmp_path / f"{label:02d}" / "0.png")

    def row(short_side_px) -> torch.Tensor:
        data = DataConfig(test=f"imagefolder:{tmp_path}", short_side_px=short_side_px)
        return load_images(data, "test", COLOR).batch([0])[0, 0, 4].float()

    slopes = [(row(px)[-1] - row(px)[0]).item() / 7 for px in (None, 8, 16, 32)]
    assert slopes == pytest.approx([16, 16, 8, 4], rel=0.1)  # 64 pixels of 255 in 16, 16, 32 and 64 columns


def test_identity_of_a_folder_is_names_sizes_labels_and_scale(tmp_path):
    def digest(**changes):
        return source_identity(DataConfig(**{"test": f"imagefolder:{root}"} | changes), "test", COLOR)["hash"]

    root = save_folder(tmp_path / "tree", [f"{i:02d}" for i in range(12)])
    before = digest()
    assert digest() == before != digest(short_side_px=16)
    next(root.glob("*/*.png")).unlink()
    assert digest() != before


@pytest.mark.parametrize("content", [None, b"no tar"])
def test_missing_or_invalid_tar_raises(tmp_path, content):
    path = tmp_path / "x.tar"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"tar:{path}"):
        load_images(DataConfig(test=f"tar:{path}"), "test", COLOR)


def test_short_side_below_one_raises():
    with pytest.raises(ConfigError, match="short_side_px: 0 must be at least 1"):
        DataConfig(test="tar:x.tar", short_side_px=0)


@pytest.mark.skipif("DREAMDISTILL_DATA" not in os.environ, reason="DREAMDISTILL_DATA names no folder of real images")
def test_imagenet_samples_have_one_image_per_class():
    path = Path(os.environ["DREAMDISTILL_DATA"]) / "imagenet_samples" / "imagenet1k_1per_class_s256_q95.tar"
    images = ImageConfig(channels=3, height=224, width=224, num_classes=1000)
    samples = load_images(DataConfig(test=f"tar:{path}", short_side_px=256), "test", images)
    assert samples.labels.tolist() == list(range(1000))
    assert samples.batch([0, 999]).shape == (2, 3, 224, 224)
