"""Plain data into dataclasses: types, messages, fingerprints."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from pipeline.run import RunConfig, load_run, resolved_yaml
from pipeline.runtime.config import ConfigError, parse, to_plain, yaml_type
from pipeline.runtime.fingerprint import differences, fingerprint

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"rate: {self.rate} must be positive")


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    inner: Inner
    flag: bool = False
    text: str = ""
    mode: Literal["cosine", "constant"] = "cosine"
    pair: tuple[float, float] = (0.5, 0.9)
    sizes: tuple[int, ...] = ()
    limit: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Inner] = field(default_factory=dict)
    parts: tuple[Inner, ...] = ()


LEAST = {"count": 3, "inner": {"rate": 1.0}}


def test_every_type_is_parsed_from_yaml():
    text = """
    {count: 3, inner: {rate: 2}, flag: true, text: hello, mode: constant, pair: [0.1, 1], sizes: [1, 2, 3], limit: 4,
     options: {any: [1, two]}, table: {a: {rate: 1.5, steps: 2}}, parts: [{rate: 1}, {rate: 2}]}
    """
    assert parse(Outer, yaml.safe_load(text)) == Outer(
        count=3,
        inner=Inner(rate=2.0),
        flag=True,
        text="hello",
        mode="constant",
        pair=(0.1, 1.0),
        sizes=(1, 2, 3),
        limit=4.0,
        options={"any": [1, "two"]},
        table={"a": Inner(rate=1.5, steps=2)},
        parts=(Inner(rate=1.0), Inner(rate=2.0)),
    )


def test_a_number_is_stored_with_the_type_of_its_field():
    parsed = parse(Outer, {**LEAST, "pair": [0, 1], "limit": 2})
    assert [type(value) for value in (*parsed.pair, parsed.limit)] == [float] * 3


def test_none_fills_only_an_optional_field():
    assert parse(Outer, {**LEAST, "limit": None}).limit is None
    with pytest.raises(ConfigError, match="count: expected a whole number, got nothing"):
        parse(Outer, {**LEAST, "count": None})


def test_scientific_notation_that_yaml_reads_as_text_becomes_a_number():
    plain = yaml.safe_load("{count: 3, inner: {rate: 5e-5}}")
    assert plain["inner"]["rate"] == "5e-5", "PyYAML understands it by now; the workaround can go"
    assert parse(Outer, plain).inner.rate == 5e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "three"}, r"count: expected a whole number, got 'three' \(str\)"),
        ({"count": 1.5}, r"count: expected a whole number, got 1\.5 \(float\)"),
        ({"count": True}, r"count: expected a whole number, got True \(bool\)"),
        ({"flag": 1}, r"flag: expected true or false, got 1 \(int\)"),
        ({"text": 5}, r"text: expected text, got 5 \(int\)"),
        ({"limit": "fast"}, r"limit: expected a finite number, got 'fast' \(str\)"),
        ({"limit": True}, r"limit: expected a finite number, got True \(bool\)"),
        ({"mode": "cosin"}, r"mode: 'cosin' is not one of 'cosine', 'constant'; did you mean cosine\?"),
        ({"pair": [0.1]}, r"pair: expected 2 values, got 1"),
        ({"pair": 0.1}, r"pair: expected a list, got 0\.1 \(float\)"),
        ({"sizes": [1, "x"]}, r"sizes\[1\]: expected a whole number, got 'x' \(str\)"),
        ({"options": [1]}, r"options: expected a mapping of keys to values, got \[1\] \(list\)"),
        ({"inner": 4}, r"inner: expected keys and values, got 4 \(int\)"),
        ({"inner": {"rate": []}}, r"inner\.rate: expected a finite number, got \[\] \(list\)"),
        ({"table": {"a": {"rate": 1, "steps": "x"}}}, r"table\.a\.steps: expected a whole number"),
        ({"parts": [{"rate": 1}, {"rate": None}]}, r"parts\[1\]\.rate: expected a finite number, got nothing"),
    ],
)
def test_a_wrong_type_names_key_and_value(change, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse(Outer, {**LEAST, **change})


def test_an_unknown_key_names_its_place_and_the_nearest_key():
    with pytest.raises(ConfigError, match=r"unknown key inner\.stepz; did you mean steps\? \(known there: rate, steps"):
        parse(Outer, {**LEAST, "inner": {"rate": 1, "stepz": 2}})
    with pytest.raises(ConfigError, match=r"unknown key zzz \(known there: count, flag"):
        parse(Outer, {**LEAST, "zzz": 2})


def test_a_missing_key_names_its_place_and_type():
    with pytest.raises(ConfigError, match=r"missing key inner\.rate: give it a value \(finite number\)"):
        parse(Outer, {"count": 1, "inner": {}})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"inner": {"rate": -1}}, "inner.rate: -1.0 must be positive"),
        ({"table": {"a": {"rate": 0}}}, "table.a.rate: 0.0 must be positive"),
        ({"parts": [{"rate": 1}, {"rate": -2}]}, "parts[1].rate: -2.0 must be positive"),
    ],
)
def test_an_error_of_a_nested_check_carries_the_full_key(change, key):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {**LEAST, **change})
    assert str(caught.value) == key


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("synthesis.inversion.terms.tv_l2=-1", "synthesis.inversion.terms.tv_l2: -1.0"),
        ("synthesis.inversion.phases=[{steps: 1}, {steps: 0}]", "synthesis.inversion.phases[1].steps: 0"),
        ("distill.augment.mixup_alpha=0", "distill.augment.mixup_alpha: 0.0"),
        ("teacher.source=resnet50", "teacher.source: 'resnet50'"),
        ("synthesis.classes=[3, 10]", "synthesis.classes: [10]"),
        ("synthesis.inversion.terms.competition=1", "synthesis.inversion.terms.competition: "),
    ],
)
def test_errors_of_a_run_start_with_the_key_as_overrides_name_it(override, key):
    with pytest.raises(ConfigError) as caught:
        load_run(DIGITS, [override])
    assert str(caught.value).startswith(key)


def test_a_fingerprint_is_a_pinned_function_of_the_content():
    expected = hashlib.sha256(b'{"a": [1, 2.5], "b": {"c": null}}').hexdigest()[:16]
    assert fingerprint({"b": {"c": None}, "a": (1, 2.5)}) == expected
    assert fingerprint({"a": [1, 2.5], "b": {"c": None}}) == expected
    assert fingerprint({"a": Inner(rate=1.0)}) == fingerprint({"a": {"steps": 1, "rate": 1.0}})


@pytest.mark.parametrize(
    "other", [{"a": 1, "b": [1, 2]}, {"a": 1, "b": [2, 1], "c": 0}, {"a": "1", "b": [2, 1]}, {"b": [2, 1]}]
)
def test_a_fingerprint_changes_with_any_value_order_type_or_key(other):
    assert fingerprint(other) != fingerprint({"a": 1, "b": [2, 1]})


def test_a_fingerprint_of_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_differences_name_only_the_keys_that_differ_with_both_values():
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5}, "e": 6}
    assert differences(before, now) == "b.c: 2 before, 5 now; b.d: 3 before, absent now; e: absent before, 6 now"
    assert differences(before, dict(before)) == ""


def test_plain_data_parses_back_to_the_same_config():
    config = parse(Outer, {**LEAST, "sizes": [1], "table": {"a": {"rate": 1}}, "parts": [{"rate": 2}], "limit": 1})
    assert parse(Outer, yaml.safe_load(yaml.safe_dump(to_plain(config)))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_resolved_yaml_of_a_run_loads_to_the_same_run(tmp_path, path):
    config = load_run(path)
    assert config.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(config))
    assert load_run(resolved) == config
    assert parse(RunConfig, to_plain(config)) == config


def test_the_resolved_yaml_holds_every_field_with_its_default():
    config = load_run(DIGITS)
    resolved = yaml.safe_load(resolved_yaml(config))
    for written, part in ((resolved, config), (resolved["synthesis"]["inversion"], config.synthesis.inversion)):
        assert list(written) == [f.name for f in dataclasses.fields(part)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), ".inf", 10**400])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ConfigError, match=r"inner\.rate: expected a finite number"):
        parse(Outer, {"count": 1, "inner": {"rate": value}})


def test_differences_tell_null_from_absent():
    assert differences({"b": 1, "a": None}, {"b": 1}) == "a: None before, absent now"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "whole number"),
        (float | None, "finite number or null"),
        (tuple[int, ...], "list of whole numbers"),
        (tuple[float, float], "list of 2 finite numbers"),
        (tuple[Inner, ...], "list of mappings"),
        (dict[str, Any], "mapping"),
        (Literal["auto", True, False], "auto, true or false"),
    ],
)
def test_a_type_is_named_in_the_words_of_yaml(kind, words):
    assert yaml_type(kind) == words
