"""YAML into frozen, typed dataclasses, with errors that name the key, the value and the fix.

The dataclasses themselves belong to the modules that use them; this module only knows how to fill one in.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and the fix."""


def load_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply `dotted.key=value` overrides (values are YAML too)."""
    try:
        mapping = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"no config file {path} (found there: {known})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, it holds {_describe(mapping)}")
    for override in overrides:
        _apply(mapping, override)
    return mapping


def _apply(mapping: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} must look like key=value, for example synthesis.num_images=500")
    *parents, leaf = key.split(".")
    node: Any = mapping
    for i, parent in enumerate(parents):
        node = _child(node, parent)
        if not isinstance(node, dict | list):
            place = ".".join(parents[: i + 1])
            raise ConfigError(f"override {override!r}: {place} is {_describe(node)}, it has no keys")
    try:
        value = yaml.safe_load(text)
        node[int(leaf) if isinstance(node, list) else leaf] = value
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a valid YAML value") from None
    except (ValueError, IndexError):
        raise ConfigError(f"override {override!r}: the list has items 0 to {len(node) - 1}, not {leaf}") from None


def _child(node: Any, name: str) -> Any:
    """The value under `name`, a new mapping where there is none; items of lists are named by their number."""
    if isinstance(node, list):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def parse(kind: type[T], value: Any, key: str = "") -> T:
    """Turn plain YAML data into `kind` (dataclass, scalar, tuple, dict, Literal or union of these).

    Raises ConfigError for unknown or missing keys, and for values of another type.
    """
    return typing.cast(T, _parse(kind, value, key))


def _parse(kind: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _parse(inner, value, key)
    if origin is typing.Literal:
        if value not in arguments:
            close = _nearest(value, arguments)
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(_yaml_word, arguments))}{close}")
        return arguments[arguments.index(value)]  # 1 is as good as true, but not the same in an identity
    if origin is tuple:
        return _parse_tuple(arguments, value, key)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a mapping of keys to values, got {_describe(value)}")
        return {str(k): _parse(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    return _parse_scalar(kind, value, key)


def _parse_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key or 'the configuration'}: expected keys and values, got {_describe(value)}")
    hints, fields = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise ConfigError(f"unknown key {prefix}{name}{_nearest(name, fields)} (known there: {known})")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ConfigError(f"missing key {prefix}{name}: give it a value of type: {_type_name(hints[name])}")
    arguments = {name: _parse(hints[name], v, prefix + name) for name, v in value.items()}
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None  # __post_init__ names its keys without the prefix


def _parse_tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}: expected a list, got {_describe(value)}; write it as [a, b]")
    if arguments[-1] is Ellipsis:
        return tuple(_parse(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{key}: expected {len(arguments)} values, got {len(value)}: {value!r}")
    return tuple(_parse(a, item, f"{key}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _parse_scalar(kind: type, value: Any, key: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)  # PyYAML reads 5e-5, without a dot, as a string
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    fix = f"; write it in quotes: '{value}'" if kind is str and value is not None else ""
    raise ConfigError(f"{key}: expected {_type_name(kind)}, got {_describe(value)}{fix}")


def _yaml_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _type_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def _nearest(name: Any, known: typing.Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as the plain data that YAML and JSON write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value
