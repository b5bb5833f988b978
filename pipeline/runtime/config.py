"""Plain data into frozen, typed dataclasses, with errors that name the key, the value and the fix.

The dataclasses belong to the modules that use them; this module only knows how to fill one in.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# Up to here, every whole number is exact as a float.
MAX_EXACT = 2**53
# Suggestions for a word that ends several keys.
MAX_SUGGESTIONS = 5
SCALARS = {int: "whole number", float: "finite number", bool: "true or false", str: "text"}


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and the fix."""


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
        kinds = [a for a in arguments if a is not type(None)]
        return _parse(kinds[0], value, key) if len(kinds) == 1 else _parse_any_scalar(kinds, value, key)
    if origin is typing.Literal:
        if value not in arguments:
            close = nearest(value, arguments)
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(_yaml_word, arguments))}{close}")
        return arguments[arguments.index(value)]  # 1 is as good as true, but not the same in an identity
    if origin is tuple:
        return _parse_tuple(arguments, value, key)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a mapping of keys to values, got {describe(value)}")
        return {str(k): _parse(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    return _parse_scalar(kind, value, key)


def _parse_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key or 'the configuration'}: expected keys and values, got {describe(value)}")
    hints, fields = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            hint = nearest(name, [*fields, *_keys_under(kind, key)])
            raise ConfigError(f"unknown key {prefix}{name}{hint} (known keys: {', '.join(sorted(fields))})")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ConfigError(f"missing key {prefix}{name}: give it a value ({yaml_type(hints[name])})")
    arguments = {name: _parse(hints[name], v, prefix + name) for name, v in value.items()}
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None  # __post_init__ names its keys without the prefix


def _keys_under(kind: type, key: str) -> list[str]:
    """The keys of the sections in a config dataclass at `key`; the item 0 stands for those of a list."""
    deeper = [section for section in walk(kind, key) if section[1] != key]
    return [join(place, field.name).replace(".N", ".0") for k, place in deeper for field in dataclasses.fields(k)]


def _parse_tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        example = f"[{value!r}]" if arguments[-1] is Ellipsis and value is not None else "[a, b]"
        raise ConfigError(f"{key}: expected a list, got {describe(value)}; write it as {example}")
    if arguments[-1] is Ellipsis:
        return tuple(_parse(arguments[0], item, f"{key}.{i}") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{key}: expected {len(arguments)} values, got {len(value)}: {value!r}")
    return tuple(_parse(a, item, f"{key}.{i}") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _parse_any_scalar(kinds: Sequence[type], value: Any, key: str) -> Any:
    if type(value) not in kinds:
        raise ConfigError(f"{key}: expected {' or '.join(map(yaml_type, kinds))}, got {describe(value)}")
    return value


def _parse_scalar(kind: type, value: Any, key: str) -> Any:
    if type(value) is kind and kind is not float:
        return value
    if kind in (int, float) and (number := _finite_number(value)) is not None:
        if kind is float:
            return number
        if number.is_integer() and abs(number) <= MAX_EXACT:
            return int(number)
        value = number
    article = "a " if kind in (int, float) else ""
    fix = f"; write it in quotes: '{value}'" if kind is str and value is not None else ""
    raise ConfigError(f"{key}: expected {article}{yaml_type(kind)}, got {describe(value)}{fix}")


def _finite_number(value: Any) -> float | None:
    """`value` as a float, also if it is text: PyYAML reads 5e-5 and 1e3, without a dot, as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def yaml_type(kind: Any) -> str:
    """What a value of `kind` is in a YAML file, for messages and for the reference."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else yaml_type(a) for a in arguments)
    if origin is typing.Literal:
        *words, last = (str(a).lower() if isinstance(a, bool) else str(a) for a in arguments)
        return f"{', '.join(words)} or {last}" if words else last
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {count}{' or '.join(map(_plural, yaml_type(arguments[0]).split(' or ')))}"
    return SCALARS.get(kind, "value" if kind is Any else "mapping")


def _plural(name: str) -> str:
    return name if name == SCALARS[str] else f"{name}s"


def _yaml_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def describe(value: Any) -> str:
    """A value and its type, for an error message."""
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def nearest(name: Any, known: Iterable[Any], part: Callable[[str], str] = str) -> str:
    """A half-sentence that suggests the known name closest to `name`; empty where none is close.

    `part` is the part of a name that is compared. A word without dots is compared with the last words of dotted names.
    """
    word, names = part(str(name)), {part(str(k)): str(k) for k in known}
    ends: dict[str, list[str]] = defaultdict(list)
    for text in names:
        ends[text if "." in word else text.rpartition(".")[2]].append(names[text])
    close = [text for end in difflib.get_close_matches(word, ends, n=1) for text in ends[end]]
    return f"; did you mean {' or '.join(close[:MAX_SUGGESTIONS])}?" if close else ""


def join(place: str, name: str) -> str:
    """The dotted key `name` at `place`, which is empty for the root."""
    return f"{place}.{name}" if place else name


def walk(kind: type, place: str = "") -> Iterator[tuple[type, str]]:
    """A config dataclass at its dotted place, and those in it; `.N` stands for an item of a list."""
    yield kind, place
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        nested, suffix = _nested_dataclass(hints[field.name])
        if nested is not None:
            yield from walk(nested, f"{join(place, field.name)}{suffix}")


def _nested_dataclass(kind: Any) -> tuple[type | None, str]:
    """The dataclass that a field holds, if any, and what follows the field's key: `.N` for an item of a list."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind, ""
    suffix = ".N" if typing.get_origin(kind) is tuple else ""
    for argument in typing.get_args(kind):
        nested, inner_suffix = _nested_dataclass(argument)
        if nested is not None:
            return nested, suffix + inner_suffix
    return None, ""


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as the plain data that YAML and JSON write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value
