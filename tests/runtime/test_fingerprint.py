"""Fingerprints change with any part of an identity; differences name the changed keys."""

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass

import pytest

from pipeline.runtime.config import ConfigError
from pipeline.runtime.fingerprint import KEYS_SHOWN, differences, fingerprint, require_same_identity, source_version


@dataclass(frozen=True, kw_only=True)
class Recipe:
    rate: float
    steps: int = 1


def test_fingerprint_is_a_pinned_function_of_the_content():
    expected = hashlib.sha256(b'{"a": [1, 2.5], "b": {"c": null}}').hexdigest()[:16]
    assert fingerprint({"b": {"c": None}, "a": (1, 2.5)}) == expected
    assert fingerprint({"a": [1, 2.5], "b": {"c": None}}) == expected
    assert fingerprint({"a": Recipe(rate=1.0)}) == fingerprint({"a": {"steps": 1, "rate": 1.0}})


@pytest.mark.parametrize(
    "other", [{"a": 1, "b": [1, 2]}, {"a": 1, "b": [2, 1], "c": 0}, {"a": "1", "b": [2, 1]}, {"b": [2, 1]}]
)
def test_fingerprint_changes_with_value_order_type_and_key(other):
    assert fingerprint(other) != fingerprint({"a": 1, "b": [2, 1]})


def test_fingerprint_of_a_non_finite_number_raises():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_differences_list_changed_keys_with_both_values():
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5}, "e": 6}
    assert differences(before, now) == "b.c: 2 before, 5 now; b.d: 3 before, absent now; e: absent before, 6 now"
    assert differences(before, dict(before)) == ""


def test_differences_distinguish_null_from_absent():
    assert differences({"b": 1, "a": None}, {"b": 1}) == "a: None before, absent now"


def test_differences_name_the_keys_of_the_configuration():
    assert differences({"training": {"steps": 1}}, {"training": {"steps": 2}}) == (
        "teacher_training.steps: 1 before, 2 now"
    )


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sha256", "teacher: the weights changed"),
        ("code_sha256", "teacher: the code of the network changed"),
        ("hash", "teacher: the images changed"),
    ],
)
def test_differences_of_hashes_are_in_words(key, words):
    assert differences({"teacher": {key: "0a"}}, {"teacher": {key: "0b"}}) == words
    assert differences({"teacher": {key: "0a"}}, {"teacher": {}}) != words


def test_long_differences_are_cut():
    text = differences({"seed": 0}, {"seed": 0} | {f"key{i:02}": i for i in range(KEYS_SHOWN + 3)})
    assert text.count(" now") == KEYS_SHOWN
    assert text.endswith("; and 3 more")


def test_another_identity_raises_with_the_differences():
    require_same_identity("out", {"seed": 0}, {"seed": 0})
    with pytest.raises(ConfigError, match=r"^out was made with another configuration \(seed: 0 before, 1 now\)"):
        require_same_identity("out", {"seed": 0}, {"seed": 1})


def test_version_of_a_package_that_is_not_installed_is_its_commit(monkeypatch):
    monkeypatch.setattr("pipeline.runtime.fingerprint.PACKAGE", "no-such-package")
    assert re.match(r"(commit \w+|unknown)", source_version())
    monkeypatch.setattr("pipeline.runtime.fingerprint.PACKAGE", "numpy")
    assert source_version().startswith(importlib.metadata.version("numpy"))
