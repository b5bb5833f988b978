"""Plain data into dataclasses: types and messages."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from pipeline.run import RunConfig, load_run, resolved_yaml
from pipeline.runtime.config import ConfigError, nearest, parse, to_plain, yaml_type

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


MINIMAL = {"count": 3, "inner": {"rate": 1.0}}


def test_every_type_is_parsed():
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


def test_number_gets_the_type_of_its_field():
    parsed = parse(Outer, {**MINIMAL, "pair": [0, 1], "limit": 2})
    assert [type(value) for value in (*parsed.pair, parsed.limit)] == [float] * 3


def test_null_is_for_optional_fields_only():
    assert parse(Outer, {**MINIMAL, "limit": None}).limit is None
    with pytest.raises(ConfigError, match="count: expected a whole number, got nothing"):
        parse(Outer, {**MINIMAL, "count": None})


def test_scientific_notation_without_a_dot_is_a_number():
    plain = yaml.safe_load("{count: 3, inner: {rate: 5e-5}}")
    assert plain["inner"]["rate"] == "5e-5", "PyYAML reads it as a number now; remove the workaround"
    assert parse(Outer, plain).inner.rate == 5e-5


@pytest.mark.parametrize("value", ["1e3", 1e3, "1.0e3", 1000])
def test_scientific_notation_of_a_whole_number_is_accepted(value):
    count = parse(Outer, {**MINIMAL, "count": value}).count
    assert (count, type(count)) == (1000, int)


def test_large_whole_number_stays_exact():
    assert parse(Outer, {**MINIMAL, "count": 2**60 + 1}).count == 2**60 + 1


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
        ({"pair": 0.1}, r"pair: expected a list, got 0\.1 \(float\); write it as \[a, b\]"),
        ({"sizes": 3}, r"sizes: expected a list, got 3 \(int\); write it as \[3\]"),
        ({"sizes": None}, r"sizes: expected a list, got nothing; write it as \[a, b\]"),
        ({"count": "1e-3"}, r"count: expected a whole number, got 0\.001 \(float\)"),
        ({"count": "1e30"}, r"count: expected a whole number, got 1e\+30 \(float\)"),
        ({"sizes": [1, "x"]}, r"sizes\.1: expected a whole number, got 'x' \(str\)"),
        ({"options": [1]}, r"options: expected a mapping of keys to values, got \[1\] \(list\)"),
        ({"inner": 4}, r"inner: expected keys and values, got 4 \(int\)"),
        ({"inner": {"rate": []}}, r"inner\.rate: expected a finite number, got \[\] \(list\)"),
        ({"table": {"a": {"rate": 1, "steps": "x"}}}, r"table\.a\.steps: expected a whole number"),
        ({"parts": [{"rate": 1}, {"rate": None}]}, r"parts\.1\.rate: expected a finite number, got nothing"),
    ],
)
def test_wrong_type_raises_with_key_and_value(change, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse(Outer, {**MINIMAL, **change})


def test_unknown_key_raises_with_the_nearest_key():
    with pytest.raises(ConfigError, match=r"unknown key inner\.stepz; did you mean steps\? \(known keys: rate, steps"):
        parse(Outer, {**MINIMAL, "inner": {"rate": 1, "stepz": 2}})
    with pytest.raises(ConfigError, match=r"unknown key zzz \(known keys: count, flag"):
        parse(Outer, {**MINIMAL, "zzz": 2})


def test_unknown_key_that_is_one_of_a_section_raises_with_its_place():
    with pytest.raises(ConfigError, match=r"unknown key rate; did you mean inner\.rate or table.*parts\.0\.rate\?"):
        parse(Outer, {**MINIMAL, "rate": 2})


def test_suggestion_is_for_the_part_that_differs():
    assert nearest("nix.yaml", ["digits.yaml", "b.yaml"], lambda name: name.removesuffix(".yaml")) == ""
    assert nearest("digit.y", ["digits.y"], lambda name: name.removesuffix(".y")) == "; did you mean digits.y?"
    assert nearest("stpes", ["a.steps", "b.lr", "c.steps"]) == "; did you mean a.steps or c.steps?"
    assert nearest("a.stpes", ["a.steps", "b.lr", "c.steps"]) == "; did you mean a.steps?"


def test_missing_key_raises_with_its_type():
    with pytest.raises(ConfigError, match=r"missing key inner\.rate: give it a value \(finite number\)"):
        parse(Outer, {"count": 1, "inner": {}})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"inner": {"rate": -1}}, "inner.rate: -1.0 must be positive"),
        ({"table": {"a": {"rate": 0}}}, "table.a.rate: 0.0 must be positive"),
        ({"parts": [{"rate": 1}, {"rate": -2}]}, "parts.1.rate: -2.0 must be positive"),
    ],
)
def test_error_of_a_nested_check_has_the_full_key(change, key):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {**MINIMAL, **change})
    assert str(caught.value) == key


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("synthesis.inversion.terms.tv_l2=-1", "synthesis.inversion.terms.tv_l2: -1.0"),
        ("synthesis.inversion.phases=[{steps: 1}, {steps: 0}]", "synthesis.inversion.phases.1.steps: 0"),
        ("distill.augment.mixup_alpha=0", "distill.augment.mixup_alpha: 0.0"),
        ("teacher.source=resnet50", "teacher.source: 'resnet50'"),
        ("classes=[3, 10]", "classes: 10 is not in 0..9"),
        ("synthesis.inversion.terms.competition=1", "synthesis.inversion.terms.competition: "),
    ],
)
def test_error_of_a_run_starts_with_the_full_key(override, key):
    with pytest.raises(ConfigError) as caught:
        load_run(DIGITS, [override])
    assert str(caught.value).startswith(key)


def test_plain_data_parses_to_the_same_config():
    config = parse(Outer, {**MINIMAL, "sizes": [1], "table": {"a": {"rate": 1}}, "parts": [{"rate": 2}], "limit": 1})
    assert parse(Outer, yaml.safe_load(yaml.safe_dump(to_plain(config)))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_yaml_loads_to_the_same_run(tmp_path, path):
    config = load_run(path)
    assert config.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(config))
    assert load_run(resolved) == config
    assert parse(RunConfig, to_plain(config)) == config


def test_resolved_yaml_has_every_field():
    config = load_run(DIGITS)
    resolved = yaml.safe_load(resolved_yaml(config))
    for plain, section in ((resolved, config), (resolved["synthesis"]["inversion"], config.synthesis.inversion)):
        assert list(plain) == [f.name for f in dataclasses.fields(section)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), ".inf", 10**400])
def test_non_finite_number_raises(value):
    with pytest.raises(ConfigError, match=r"inner\.rate: expected a finite number"):
        parse(Outer, {"count": 1, "inner": {"rate": value}})


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
def test_yaml_type_names_each_type(kind, words):
    assert yaml_type(kind) == words


def test_a_run_of_some_classes_of_a_larger_teacher_is_valid():
    config = load_run(DIGITS, ["images.num_classes=21843", "classes=[0,21842]"])
    assert config.class_labels == (0, 21842)
    assert config.student_images.num_classes == 2
