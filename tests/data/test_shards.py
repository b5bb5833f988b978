"""Parts and shards: what they hold, how they are packed, and how damage is reported."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from tiny_run import digests, make_facts, make_samples

from pipeline.data import shards
from pipeline.data.codec import EXTENSIONS, decode_image
from pipeline.data.damage import find_damage
from pipeline.data.parts import ShardError, part_path, read_members, write_part
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import MANIFEST, pack, read_manifest, remove_parts
from pipeline.runtime.fingerprint import fingerprint

IDENTITY = {"seed": 0, "teacher": "of a test"}
NUM_CLASSES, NUM_IMAGES, PART_SIZE = 12, 40, 16


def write_parts(folder: Path, *, channels=1, image_format="png", reverse=False) -> torch.Tensor:
    """Three parts of 40 images of 12 classes; returns their pixels, by number."""
    labels = [(5 * i) % NUM_CLASSES for i in range(NUM_IMAGES)]
    samples, pixels = make_samples(labels, channels=channels, image_format=image_format)
    starts = list(range(0, NUM_IMAGES, PART_SIZE))
    for index, start in sorted(enumerate(starts), reverse=reverse):
        write_part(folder, index, samples[start : start + PART_SIZE], image_format)
    return pixels


def pack_parts(folder: Path, *, channels=1, image_format="png", images_per_shard=3, batch_indices=(0, 1, 2)) -> None:
    facts = make_facts(
        num_classes=NUM_CLASSES, channels=channels, image_format=image_format, images_per_shard=images_per_shard
    )
    pack(folder, batch_indices, IDENTITY, facts)


def numbers(images: ShardSet) -> list[int]:
    return [int(key.split("/")[1]) for key in images.keys]


@pytest.fixture
def packed(tmp_path) -> Path:
    folder = tmp_path / "0"
    write_parts(folder)
    pack_parts(folder)
    remove_parts(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_return_equal_images_and_labels(tmp_path, channels, image_format):
    pixels = write_parts(tmp_path, channels=channels, image_format=image_format)
    pack_parts(tmp_path, channels=channels, image_format=image_format)
    images = ShardSet([tmp_path])
    assert sorted(numbers(images)) == list(range(NUM_IMAGES))
    assert torch.equal(images.batch(range(len(images))), pixels[numbers(images)])
    assert images.labels.tolist() == [(5 * number) % NUM_CLASSES for number in numbers(images)]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_returns_close_images(tmp_path, channels):
    pixels = write_parts(tmp_path, channels=channels, image_format="jpeg")
    pack_parts(tmp_path, channels=channels, image_format="jpeg")
    images = ShardSet([tmp_path])
    stored = images.batch(range(len(images)))
    assert stored.shape == (NUM_IMAGES, channels, 8, 8)
    assert (stored.int() - pixels[numbers(images)].int()).abs().float().mean() < 5


def test_tar_holds_one_class_with_padded_names(packed):
    for path in sorted((packed / "train").iterdir()):
        with tarfile.open(path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}
        (label,) = {name.split("/")[0] for name in contents}
        assert path.name.startswith(f"{label}-")
        for key in {name.partition(".")[0] for name in contents}:
            assert {f"{key}.png", f"{key}.cls", f"{key}.json"} <= contents.keys()
            assert contents[f"{key}.cls"] == str(int(label)).encode()
            assert json.loads(contents[f"{key}.json"])["label"] == int(label)
    with tarfile.open(packed / "train" / "0003-00000.tar") as tar:
        assert sorted(tar.getnames())[:3] == ["0003/000003.cls", "0003/000003.json", "0003/000003.png"]


def test_shards_have_at_most_images_per_shard(tmp_path):
    write_parts(tmp_path)
    pack_parts(tmp_path, images_per_shard=3)
    manifest = read_manifest(tmp_path)
    by_class = {}
    for entry in manifest["shards"]:
        by_class.setdefault(entry["class"], []).append((entry["file"], entry["count"]))
    assert by_class[0] == [("train/0000-00000.tar", 3), ("train/0000-00001.tar", 1)]
    assert by_class[11] == [("train/0011-00000.tar", 3)]
    assert sum(entry["count"] for entry in manifest["shards"]) == manifest["num_images"] == NUM_IMAGES


def test_manifest_locates_every_image(packed):
    manifest = read_manifest(packed)
    _, pixels = make_samples([0] * NUM_IMAGES)
    for entry in manifest["shards"]:
        content = (packed / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        for key, offset, size in zip(entry["keys"], entry["offsets"], entry["sizes"], strict=True):
            image = decode_image(content[offset : offset + size], 1, key)
            assert torch.equal(image, pixels[int(key.split("/")[1])])
    assert manifest["fingerprint"] == fingerprint(IDENTITY)
    assert manifest["scores"] == {"teacher_probability": 0.5, "teacher_top1": 0.5}


def test_repeated_pack_and_other_order_of_parts_give_the_same_bytes(tmp_path):
    once, reverse = tmp_path / "once", tmp_path / "reverse"
    write_parts(once)
    pack_parts(once)
    first = digests(once)
    pack_parts(once)
    assert digests(once) == first
    write_parts(reverse, reverse=True)
    pack_parts(reverse, batch_indices=(2, 0, 1))
    assert digests(reverse) == first


@pytest.mark.parametrize("shards_before_failure", [0, 5])
def test_interrupted_pack_leaves_no_manifest_and_resumes(tmp_path, packed, monkeypatch, shards_before_failure):
    folder, written = tmp_path / "interrupted", []
    write_parts(folder)
    write_shard = shards.write_shard

    def fail_in_the_middle(*arguments):
        if len(written) == shards_before_failure:
            raise KeyboardInterrupt
        written.append(arguments)
        return write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", fail_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            pack_parts(folder)
    assert not (folder / MANIFEST).exists()
    with pytest.raises(ShardError, match="no complete synthetic dataset; name the folder of one"):
        ShardSet([folder])
    pack_parts(folder)
    remove_parts(folder)
    assert digests(folder) == digests(packed)


def test_manifest_is_written_last(tmp_path, monkeypatch):
    write_parts(tmp_path)
    renamed, replace = [], os.replace

    def record(temporary, path):
        replace(temporary, path)
        renamed.append(Path(path).name)

    monkeypatch.setattr(os, "replace", record)
    pack_parts(tmp_path)
    assert renamed.index(MANIFEST) == len(renamed) - 1
    assert {"README.md", "_info.json", "0011-00000.tar"} < set(renamed)


def test_parts_are_removed_only_after_packing(tmp_path):
    write_parts(tmp_path)
    with pytest.raises(AssertionError):
        remove_parts(tmp_path)
    assert len(list((tmp_path / "parts").iterdir())) == 3
    pack_parts(tmp_path)
    remove_parts(tmp_path)
    remove_parts(tmp_path)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_part_truncated_inside_a_member_raises(tmp_path, position):
    write_parts(tmp_path)
    path = part_path(tmp_path, 1)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    member = members[int(position * len(members))]
    path.write_bytes(path.read_bytes()[: member.offset_data + member.size // 2])
    with pytest.raises(ShardError, match=f"{path} .*run the stage `synthesize` again"):
        pack_parts(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_part_that_is_not_a_tar_raises(tmp_path, content):
    write_parts(tmp_path)
    part_path(tmp_path, 2).write_bytes(content)
    with pytest.raises(ShardError, match=f"{part_path(tmp_path, 2)} is damaged"):
        pack_parts(tmp_path)


def test_missing_part_raises(tmp_path):
    write_parts(tmp_path)
    part_path(tmp_path, 0).unlink()
    with pytest.raises(ShardError, match=str(part_path(tmp_path, 0))):
        pack_parts(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_find_damage_of_intact_shards_is_empty(packed):
    assert find_damage(packed) == []


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def duplicate(path: Path) -> None:
    shutil.copy(path, path.with_name("0003-00007.tar"))


@pytest.mark.parametrize(
    ("damage", "name", "complaint"),
    [
        (remove, "0003-00000.tar", "is missing"),
        (truncate, "0003-00000.tar", "truncated"),
        (alter, "0003-00000.tar", "was altered"),
        (duplicate, "0003-00007.tar", "is not in the manifest"),
    ],
)
def test_find_damage_names_the_shard(packed, damage, name, complaint):
    damage(packed / "train" / "0003-00000.tar")
    (problem,) = find_damage(packed)
    assert str(packed / "train" / name) in problem
    assert complaint in problem


@pytest.mark.parametrize("image_format", EXTENSIONS)
def test_find_damage_names_images_of_another_size(tmp_path, image_format):
    write_parts(tmp_path, image_format=image_format)
    facts = make_facts(num_classes=NUM_CLASSES, image_format=image_format)
    pack(tmp_path, (0, 1, 2), IDENTITY, {**facts, "shape": [1, 8, 4]})
    problems = find_damage(tmp_path)
    assert len(problems) == NUM_CLASSES
    assert "0000-00000.tar does not hold the images that the manifest states" in problems[0]


def test_find_damage_names_images_of_another_format(tmp_path):
    samples, _ = make_samples([0], image_format="webp")
    write_part(tmp_path, 0, samples, "png")
    pack_parts(tmp_path, batch_indices=(0,))
    (problem,) = find_damage(tmp_path)
    assert "0000-00000.tar does not hold the images that the manifest states" in problem


@pytest.mark.parametrize("image_format", EXTENSIONS)
def test_images_of_the_format_are_whole(tmp_path, image_format):
    write_parts(tmp_path, channels=3, image_format=image_format)
    pack_parts(tmp_path, channels=3, image_format=image_format)
    assert find_damage(tmp_path) == []


def test_members_have_the_extension_of_the_format(tmp_path):
    for image_format, extension in EXTENSIONS.items():
        samples, _ = make_samples([4], image_format=image_format, first_image=17)
        write_part(tmp_path / image_format, 0, samples, image_format)
        assert read_members(part_path(tmp_path / image_format, 0)).keys() == {"0004/000017"}
        assert read_members(part_path(tmp_path / image_format, 0))["0004/000017"].keys() == {extension, "cls", "json"}


@pytest.mark.parametrize("num_lost", [1, 2, 3, 6])
def test_part_truncated_between_members_raises(tmp_path, num_lost):
    samples, _ = make_samples([0, 1, 2, 3])
    write_part(tmp_path, 0, samples, "png")
    path = part_path(tmp_path, 0)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-num_lost].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ShardError, match=rf"{path} is damaged .cut or damaged after .*; run"):
        pack(tmp_path, [0], {}, make_facts())
    assert not (tmp_path / MANIFEST).exists()
