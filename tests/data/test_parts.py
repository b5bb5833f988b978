"""Damage to a part is noticed, or is in bytes that nobody reads."""

import random

import pytest
from tiny_run import make_samples

from pipeline.data.parts import (
    FINGERPRINT,
    find_fault,
    find_whole,
    part_fingerprint,
    part_path,
    read_files,
    read_members,
    write_part,
)

LABELS = [3, 3, 0]
KEYS = ["0003/000000", "0003/000001", "0000/000002"]


@pytest.fixture
def part(tmp_path):
    samples, _ = make_samples(LABELS)
    for sample in samples:
        sample.metadata[FINGERPRINT] = "abc"
    write_part(tmp_path, 0, samples, "png")
    return part_path(tmp_path, 0)


def content_of(part):
    return {key: read_files(part, positions) for key, positions in read_members(part).items()}


def test_a_part_is_whole_as_it_was_written(part):
    assert find_fault(part, KEYS) is None
    assert part_fingerprint(part) == "abc"


def test_flipped_bits_are_noticed_or_harmless(part):
    whole, before, draw = part.read_bytes(), content_of(part), random.Random(0)
    num_noticed = 0
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        part.write_bytes(flipped)
        if fault := find_fault(part, KEYS):
            assert str(part) in fault
            num_noticed += 1
        else:
            assert content_of(part) == before
    assert num_noticed > 50


@pytest.mark.parametrize("num_bytes", [0, 512, 5000])
def test_a_cut_is_noticed(part, num_bytes):
    part.write_bytes(part.read_bytes()[:num_bytes])
    assert f"{part} is damaged" in find_fault(part, KEYS)
    assert part_fingerprint(part) is None or num_bytes == 5000


def test_a_cut_costs_only_the_images_behind_it(part):
    end = max(offset + size for offset, size in read_members(part)[KEYS[1]].values())
    for num_bytes, num_whole in ((end, 2), (end - 1, 1), (end - 600, 1)):
        part.write_bytes(part.read_bytes()[:num_bytes])
        assert list(find_whole(part, ["abc"])) == KEYS[:num_whole]
        assert find_whole(part, ["abd"]) == {}


def test_images_of_another_batch_are_noticed(part):
    for keys in (KEYS[:2], [*KEYS, "0000/000003"], KEYS[::-1]):
        assert find_fault(part, keys) == f"{part} is damaged: it does not hold the images of its batch"


@pytest.mark.parametrize("extension", ["png", "cls", "json"])
def test_each_file_of_an_image_is_protected(part, extension):
    content = bytearray(part.read_bytes())
    offset, size = read_members(part)[KEYS[1]][extension]
    content[offset + size // 2] ^= 1
    part.write_bytes(content)
    assert find_fault(part, KEYS) == (
        f"{part} is damaged: its image {KEYS[1]} does not have the digest in its metadata; "
        "run the stage `synthesize` again, which makes damaged images anew"
    )
