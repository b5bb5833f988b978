"""Sets as files in class folders: complete or absent, and continued after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import (
    ROUND_CLASSES,
    ROUND_IMAGES,
    digests,
    make_facts,
    make_samples,
    modification_times,
    write_grown_round,
    write_round,
)

from pipeline.data import unpack as module
from pipeline.data.image_sets import DataConfig, load_images
from pipeline.data.parts import ShardError, write_part
from pipeline.data.shards import MANIFEST, MANIFEST_COPY, pack, read_manifest
from pipeline.data.unpack import unpack
from pipeline.models.config import ImageConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import write_json


def test_the_folder_holds_the_images_the_names_and_the_record(packed_round, tmp_path):
    assert unpack([packed_round[0]], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "classes.txt", "unpacked.json"}
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == [
        f"{label:04d}" for label in range(ROUND_CLASSES)
    ]
    assert len(list((tmp_path / "out/train").rglob("*.png"))) == ROUND_IMAGES


def test_the_run_reads_it_as_a_folder_of_real_images(packed_round, tmp_path):
    unpack([packed_round[0]], tmp_path / "out")
    names = str(tmp_path / "out/classes.txt")
    data = DataConfig(test=f"imagefolder:{tmp_path / 'out/train'}", class_names=names)
    images = load_images(data, "test", ImageConfig(channels=3, height=8, width=8, num_classes=ROUND_CLASSES))
    numbers = [int(Path(name).stem) for name in images.names]
    assert images.labels.tolist() == [number % ROUND_CLASSES for number in numbers]
    assert torch.equal(images.batch(range(ROUND_IMAGES)), packed_round[1][numbers])


def test_rounds_of_a_run_share_the_folders(packed_round, tmp_path):
    write_round(tmp_path / "1", first_image=ROUND_IMAGES)
    unpack([packed_round[0], tmp_path / "1"], tmp_path / "out")
    assert len(list((tmp_path / "out/train").rglob("*.png"))) == 2 * ROUND_IMAGES


@pytest.mark.parametrize(("image_format", "extension"), [("webp", "webp"), ("jpeg", "jpg")])
def test_files_keep_their_format_and_bytes(tmp_path, image_format, extension):
    samples, _ = make_samples([3, 5, 3], image_format=image_format)
    write_part(tmp_path / "0", 0, samples, image_format)
    pack(tmp_path / "0", [0], {"seed": 0}, make_facts(image_format=image_format))
    unpack([tmp_path / "0"], tmp_path / "out")
    for sample in samples:
        assert (tmp_path / "out/train" / f"{sample.key}.{extension}").read_bytes() == sample.image
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["0003", "0005"]


def test_a_second_call_changes_nothing(packed_round, tmp_path):
    unpack([packed_round[0]], tmp_path / "out")
    before = modification_times(tmp_path)
    assert not unpack([packed_round[0]], tmp_path / "out")
    assert modification_times(tmp_path) == before


def test_a_killed_call_leaves_no_folder_and_is_continued(packed_round, tmp_path, monkeypatch):
    unpack([packed_round[0]], tmp_path / "expected")
    unpack_shard, shards = module._unpack_shard, []

    def kill_in_the_middle(*arguments):
        if len(shards) == 5:
            raise KeyboardInterrupt
        shards.append(arguments)
        unpack_shard(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_unpack_shard", kill_in_the_middle)
        unpack([packed_round[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = sorted((tmp_path / "out.tmp/train").rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:20])  # half-written
    before = modification_times(tmp_path / "out.tmp/train")
    unpack([packed_round[0]], tmp_path / "out")
    after = modification_times(tmp_path / "out/train")
    assert sum(after[name] != time_ns for name, time_ns in before.items()) == 1
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert not (tmp_path / "out.tmp").exists()


def test_what_was_left_of_another_set_is_replaced(packed_round, tmp_path):
    stale = tmp_path / "out.tmp/train/0099"
    stale.mkdir(parents=True)
    (stale / "000001.png").write_bytes(b"of another set")
    (tmp_path / "out.tmp/unpacked.json").write_text(json.dumps({"0": {"fingerprint": "another"}}))
    unpack([packed_round[0]], tmp_path / "out")
    assert not (tmp_path / "out/train/0099").exists()


def test_a_folder_of_a_set_before_it_grew_gets_the_other_images(tmp_path, monkeypatch):
    folder, target = tmp_path / "0", tmp_path / "out"
    write_grown_round(tmp_path / "grown")
    unpack([tmp_path / "grown"], tmp_path / "expected")
    write_round(folder)
    unpack([folder], target)
    before = modification_times(target / "train")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "grown", folder)

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_unpack_shard", kill)
        unpack([folder], target)
    assert not target.exists()  # a folder is complete or absent
    assert unpack([folder], target)
    assert digests(target) == digests(tmp_path / "expected")
    after = modification_times(target / "train")
    assert {name: after[name] for name in before} == before
    assert not unpack([folder], target)


def test_a_folder_of_some_rounds_gets_the_others(packed_round, tmp_path):
    write_round(tmp_path / "1", first_image=ROUND_IMAGES)
    unpack([packed_round[0]], tmp_path / "out")
    assert unpack([packed_round[0], tmp_path / "1"], tmp_path / "out")
    assert len(list((tmp_path / "out/train").rglob("*.png"))) == 2 * ROUND_IMAGES
    assert not (tmp_path / "out.tmp").exists()


@pytest.mark.parametrize("name", ["train/0003/000003.png", "train/0003/notes.txt"])
def test_a_folder_whose_images_the_user_changed_stays_as_it_is(packed_round, tmp_path, name):
    write_round(tmp_path / "1", first_image=ROUND_IMAGES)
    unpack([packed_round[0]], tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"of the user")
    before = digests(tmp_path)
    with pytest.raises(ValueError, match="holds other files, or another set; remove it"):
        unpack([packed_round[0], tmp_path / "1"], tmp_path / "out")
    assert digests(tmp_path) == before


def test_a_folder_with_other_files_stays_as_it_is(packed_round, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    unpack([packed_round[0]], target)  # into an empty one
    write_round(tmp_path / "1", first_image=5)
    (tmp_path / "file").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").touch()
    before = digests(tmp_path)
    for folder, other in (
        (tmp_path / "1", target),
        (packed_round[0], tmp_path / "home"),
        (tmp_path / "1", tmp_path / "file"),
    ):
        with pytest.raises(ValueError, match=f"^--folder: {other} holds other files, or another set; remove it"):
            unpack([folder], other)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("key", ["../../out of the folder", "/absolute", "0004/000003"])
def test_an_image_whose_name_leads_out_of_its_class_folder_is_not_written(tmp_path, key):
    folder = tmp_path / "0"
    write_round(folder)
    manifest = read_manifest(folder)
    (entry,) = [entry for entry in manifest["shards"] if entry["file"] == "train/0003-00000.tar"]
    entry["keys"][0] = key
    for name in (MANIFEST, MANIFEST_COPY):
        write_json(folder / name, manifest)
    before = digests(tmp_path)
    with pytest.raises(ShardError, match=r"keys: not all have the form 0003/000000"):
        unpack([folder], tmp_path / "out")
    assert digests(tmp_path) == before


def test_the_current_folder_is_refused(packed_round):
    with pytest.raises(ValueError, match=r"^--folder: \. cannot be replaced"):
        unpack([packed_round[0]], Path())


def test_the_names_are_those_of_the_classes_of_the_set(tmp_path):
    """A set of some classes has their positions as labels, as docs/data_format.md says."""
    samples, pixels = make_samples([0, 1, 1], channels=3)
    write_part(tmp_path / "0", 0, samples, "png")
    facts = make_facts(num_classes=2, channels=3) | {"classes": [7, 4], "class_titles": ["seven", "four"]}
    pack(tmp_path / "0", [0], {"seed": 0}, facts)
    unpack([tmp_path / "0"], tmp_path / "out")
    names = tmp_path / "out/classes.txt"
    assert names.read_text() == "0000 seven\n0001 four\n"
    data = DataConfig(test=f"imagefolder:{tmp_path / 'out/train'}", class_names=str(names))
    images = load_images(data, "test", ImageConfig(channels=3, height=8, width=8, num_classes=2))
    assert images.labels.tolist() == [0, 1, 1]
    assert torch.equal(images.batch(range(3)), pixels)
    with pytest.raises(ConfigError, match=r"2 different names on 2 lines, images\.num_classes=10 needs"):
        load_images(data, "test", ImageConfig(channels=3, height=8, width=8, num_classes=10))


def test_sets_with_images_of_the_same_name_are_refused(packed_round, tmp_path):
    with pytest.raises(ValueError, match="same name; unpack each into a folder of its own"):
        unpack([packed_round[0], packed_round[0]], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_is_not_unpacked(tmp_path):
    write_round(tmp_path / "0")
    path = tmp_path / "0/train/0003-00000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=f"{path} was altered"):
        unpack([tmp_path / "0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told(packed_round, tmp_path):
    (tmp_path / "out.tmp/train/0000").mkdir(parents=True)
    (tmp_path / "out.tmp/train/0000/000000.png").symlink_to("/dev/full")
    unpack([packed_round[0]], tmp_path / "other")
    (tmp_path / "out.tmp/unpacked.json").write_bytes((tmp_path / "other/unpacked.json").read_bytes())
    with pytest.raises(OSError, match=r"000000\.png: the disk or quota is full: free space and run the same command"):
        unpack([packed_round[0]], tmp_path / "out")
