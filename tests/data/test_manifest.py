"""Manifests that are damaged, foreign, or made to lead out of the folder of their set."""

import json

import pytest

from pipeline.data.manifest import FORM, parse_manifest
from pipeline.data.parts import ShardError
from pipeline.data.shards import MANIFEST, read_manifest
from pipeline.runtime.digests import seal
from pipeline.runtime.fingerprint import fingerprint


@pytest.fixture
def manifest(packed_round):
    """The manifest of a set of 18 shards; a test may change it."""
    return read_manifest(packed_round[0])


def parse(manifest) -> dict:
    return parse_manifest(json.dumps(seal(manifest)).encode())


def test_a_manifest_of_a_set_is_returned_as_it_is(manifest):
    assert parse(manifest) == manifest


@pytest.mark.parametrize("key", FORM)
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
        ("shape", [3, 10**9, 10**9], "shape: "),
        ("num_images", 10**400, "num_images is too large, no usable number"),
        ("fingerprint", "0" * 16, "its fingerprint is not that of its identity"),
        ("image_format", "gif", "image_format: 'gif'"),
        ("scores", {"teacher_top1": "good"}, r"scores\.teacher_top1 is"),
        ("scores", {"teacher_top1": float("nan")}, r"scores\.teacher_top1 is nan"),
        ("scores", {"teacher_top1": 10**400}, r"scores\.teacher_top1 is too large"),
        ("identity", {"synthesis": []}, r"identity\.synthesis is"),
        ("identity", {"synthesis": {"grown_from": 5}}, r"identity\.synthesis\.grown_from is"),
        ("identity", {"synthesis": {"num_images": "all"}}, r"identity\.synthesis\.num_images is"),
        ("grown_from", 5, "grown_from is"),
        ("grown_from", [{}], r"grown_from\.0\.fingerprint is missing"),
        ("classes", [0], "classes: "),
        ("class_titles", list(range(12)), r"class_titles\.0 is"),
        ("shards", [], "shards: there is none"),
        ("shards", [1], r"shards\.0 is"),
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


@pytest.mark.parametrize(
    ("synthesis", "facts", "is_whole"),
    [
        ({"num_images": 36}, {}, True),
        ({"num_images": 38}, {}, False),
        ({"num_images": 73, "rounds": 2}, {}, True),  # 36 and 37
        ({"num_images": 73, "rounds": 2}, {"round": 1}, False),
        ({"num_images": 76, "grown_from": [20, 40]}, {}, True),  # those that are added
        ({"num_images": 36, "grown_from": [20]}, {"grown_from": [{"fingerprint": "0"}]}, True),
        ({"num_images": 36, "grown_from": [20]}, {}, False),
    ],
)
def test_a_set_has_the_images_of_its_identity(manifest, synthesis, facts, is_whole):
    identity = {"synthesis": synthesis}
    manifest |= {**facts, "identity": identity, "fingerprint": fingerprint(identity)}
    if is_whole:
        assert parse(manifest) == manifest
    else:
        with pytest.raises(ValueError, match=r"^num_images: 36, but its identity is that of a set of"):
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
