"""The reference of a tree of config dataclasses as Markdown: every key with type, default and meaning."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from pipeline.runtime.config import to_plain, yaml_type

ATTRIBUTES = "Attributes:"
# PyYAML writes it after a scalar.
DOCUMENT_END = "...\n"
# An attribute of a Google-style docstring; deeper lines continue it.
ATTRIBUTE_LINE = re.compile(r" {4}(\w+): (.+)")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A config dataclass and the dotted keys under which the tree holds it; the root's key is empty."""

    kind: type
    keys: tuple[str, ...]


def reference(root: type, defaults: Mapping[str, str] = MappingProxyType({})) -> str:
    """Markdown with one table for each dataclass in the tree of `root`.

    `defaults` replaces the stated default of a dotted key that the loader fills in. Raises ValueError
    when a docstring leaves out a field or describes one that does not exist.
    """
    return "\n\n".join(_markdown(section, defaults) for section in sections(root))


def sections(root: type) -> list[Section]:
    """The dataclasses in the tree of `root`, in the order of their first key."""
    keys: dict[type, list[str]] = {}
    for kind, key in _walk(root, ""):
        keys.setdefault(kind, []).append(key)
    return [Section(kind=kind, keys=tuple(names)) for kind, names in keys.items()]


def _walk(kind: type, key: str) -> Iterator[tuple[type, str]]:
    yield kind, key
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        nested, suffix = _nested_dataclass(hints[field.name])
        if nested is not None:
            yield from _walk(nested, f"{_join(key, field.name)}{suffix}")


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


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _markdown(section: Section, defaults: Mapping[str, str]) -> str:
    summary, meanings = parse_docstring(section.kind)
    key, *others = section.keys
    parts = [f"## {', '.join(f'`{k}`' for k in section.keys)}" if key else "## Top level", summary]
    if others:
        *head, last = (f"`{k}`" for k in others)
        names = f"{', '.join(head)} and {last}" if head else last
        parts.append(f"The table lists the keys of `{key}`. The keys of {names} are the same.")
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(section.kind)
    for field in dataclasses.fields(section.kind):
        dotted = _join(key, field.name)
        default = defaults.get(dotted) or _default(field)
        rows.append(f"| `{dotted}` | {yaml_type(hints[field.name])} | {default} | {_cell(meanings[field.name])} |")
    return "\n\n".join([*parts, "\n".join(rows)])


def parse_docstring(kind: type) -> tuple[str, dict[str, str]]:
    """The text of a dataclass before its `Attributes:`, and the meaning of each field, inherited ones included.

    Raises ValueError unless exactly the fields are described.
    """
    meanings: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        meanings |= _attributes(parent)
    names = {field.name for field in dataclasses.fields(kind)}
    if missing := sorted(names - meanings.keys()):
        raise ValueError(f"{kind.__name__}: the docstring describes no {', '.join(missing)}; add it under {ATTRIBUTES}")
    if unknown := sorted(meanings.keys() - names):
        raise ValueError(f"{kind.__name__}: the docstring describes {', '.join(unknown)}, which is no field; remove it")
    summary, _, _ = _docstring(kind).partition(ATTRIBUTES)
    return "\n\n".join(" ".join(text.split()) for text in summary.strip().split("\n\n")), meanings


def _attributes(kind: type) -> dict[str, str]:
    _, _, text = _docstring(kind).partition(ATTRIBUTES)
    meanings: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := ATTRIBUTE_LINE.fullmatch(line):
            name, meanings[match[1]] = match[1], match[2]
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings


def _docstring(kind: type) -> str:
    """The docstring of the class itself without its indentation; "" for a built-in class."""
    own = kind.__dict__.get("__doc__") if dataclasses.is_dataclass(kind) else None
    return inspect.cleandoc(own or "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    text = yaml.safe_dump(to_plain(value), default_flow_style=True, width=1000)
    return f"`{text.removesuffix(DOCUMENT_END).strip()}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
