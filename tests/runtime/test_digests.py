"""Files that carry a digest: what is changed in them is noticed, their layout does not matter."""

import json
import random

import pytest

from pipeline.runtime.digests import COMMENTS, find_fault, seal, seal_line, seal_text, unseal, unseal_line

VALUE = {"b": [1, 2.5, {"c": None}], "a": "text \u00e9", "big": {"10": 1, "9": True}}


def flips(content: bytes, count: int):
    draw = random.Random(0)
    for _ in range(count):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_is_returned_whatever_its_layout(indent):
    sealed = seal(VALUE)
    content = json.dumps(dict(reversed(sealed.items())), indent=indent, ensure_ascii=indent is None)
    assert unseal(content.encode()) == VALUE
    assert find_fault(content.encode(), ".json") is None


def test_keys_that_are_no_text_have_the_digest_of_what_is_written():
    assert unseal(json.dumps(seal({"steps": {2: "a", 10: "b"}, "shape": (1, 2)})).encode()) == {
        "steps": {"2": "a", "10": "b"},
        "shape": [1, 2],
    }


def test_each_flipped_bit_of_an_object_is_noticed_or_harmless():
    content = json.dumps(seal(VALUE)).encode()
    num_noticed = 0
    for flipped in flips(content, 400):
        if find_fault(flipped, ".json"):
            num_noticed += 1
        else:
            assert unseal(flipped) == VALUE
    assert num_noticed > 350


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting"),
        (b"[1]", "it is no object"),
        (b'{"a": 1}', "it holds no digest; files of older versions have none"),
        (b'{"a": 1, "sha256": "0"}', "its content does not have the digest in it"),
        (b"[" * 100_000, "its values are nested too deeply"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "its values are nested too deeply"),
        (b"\xff", "codec can"),
    ],
)
def test_what_is_wrong_is_said(content, message):
    with pytest.raises(ValueError, match=message):
        unseal(content)


def test_each_flipped_bit_of_a_line_is_noticed_or_harmless():
    line = seal_line(VALUE)
    assert line.endswith(b"\n") and unseal_line(line) == VALUE
    for flipped in flips(line, 400):
        try:
            assert unseal_line(flipped) == VALUE
        except ValueError:
            continue


@pytest.mark.parametrize("ending", COMMENTS)
@pytest.mark.parametrize("text", ["", "one line", "two\nlines\n", "<p>\n\n"])
def test_every_change_of_a_text_is_noticed(ending, text):
    content = seal_text(text, ending).encode()
    assert content.startswith(text.encode())
    assert find_fault(content, ending) is None
    for flipped in (*flips(content, 200), content[:-1], content[:-2], content + b"\n", b"", b"\xff"):
        assert find_fault(flipped, ending) == "its last line is not the digest of all before it"
