"""Manifests that are damaged, foreign, or made to lead out of the folder of their set."""

import json

import pytest

from pipeline.data.manifest import KEYS, parse_manifest
from pipeline.data.parts import ShardError
from pipeline.data.shards import MANIFEST, read_manifest
from pipeline.runtime.digests import seal


@pytest.fixture
def manifest(packed_round):
    """The manifest of a set of 18 shards; a test may change it."""
    return read_manifest(packed_round[0])


def parse(manifest) -> dict:
    return parse_manifest(json.dumps(seal(manifest)).encode())


def test_a_manifest_of_a_set_is_returned_as_it_is(manifest):
    assert parse(manifest) == manifest


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, True, "deleted"])
def test_every_key_that_is_read_has_its_type(manifest, key, value):
    if value == "deleted":
        del manifest[key]
    else:
        manifest[key] = value
    with pytest.raises(ValueError, match=f"^{key} is"):
        parse(manifest)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 99, "it has format 99, this version reads 2"),
        ("num_classes", 0, "num_classes: 0"),
        ("num_images", 35, "num_images: 35"),
        ("shape", [3, 8], "shape: "),
        ("shape", [3, 8, 0], "shape: "),
        ("image_format", "gif", "image_format: 'gif'"),
        ("scores", {"teacher_top1": "good"}, "scores: "),
        ("identity", {"synthesis": []}, r"identity\.synthesis: "),
        ("identity", {"synthesis": {"grown_from": 5}}, r"identity\.synthesis: "),
        ("identity", {"synthesis": {"num_images": "all"}}, r"identity\.synthesis: "),
        ("grown_from", 5, "grown_from: "),
        ("grown_from", [{}], "grown_from: "),
        ("classes", [0], "classes: "),
        ("class_titles", list(range(12)), "class_titles: "),
        ("shards", [], "shards: there is none"),
        ("shards", [1], r"shards\.0: no object"),
    ],
)
def test_every_value_that_is_read_fits(manifest, key, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(manifest | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../0000-00000.tar"),
        ("file", "train/../0000-00000.tar"),
        ("file", "/train/0000-00000.tar"),
        ("file", "train/0001-00000.tar"),
        ("class", 12),
        ("class", -1),
        ("count", 3),
        ("keys", ["0000/000000"]),
        ("keys", ["0000/000000", "../../000001"]),
        ("keys", ["0000/000000", "/absolute/000001"]),
        ("keys", ["0000/000000", "0001/000001"]),
        ("keys", ["0000/000000", "0000/000001.png/x"]),
        ("keys", ["0000/000000", 1]),
        ("offsets", [-1, 0]),
        ("sizes", [1, 2, 3]),
        ("sizes", [1, 2.5]),
        ("sizes", [1, 10**18]),
    ],
)
def test_every_shard_fits_its_class_and_no_name_leads_elsewhere(manifest, key, value):
    manifest["shards"][0][key] = value
    with pytest.raises(ValueError, match=r"^shards\.0"):
        parse(manifest)


def test_a_file_is_named_once(manifest):
    manifest["shards"][1] = manifest["shards"][0]
    with pytest.raises(ValueError, match="a file is named twice"):
        parse(manifest)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"format": 1}', "\ud800"])
def test_a_damaged_file_is_named_with_the_fix(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(
        ShardError, match=rf"^{tmp_path / MANIFEST} is damaged, or no manifest.*; remove {tmp_path} and make or fetch"
    ):
        read_manifest(tmp_path)
