"""The reference of a tree of config dataclasses: every key with type, default and meaning; also as Markdown."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from pipeline.runtime.config import join, to_plain, walk, yaml_type

ATTRIBUTES = "Attributes:"
# PyYAML writes it after a scalar.
DOCUMENT_END = "...\n"
# An attribute of a Google-style docstring; deeper lines continue it.
ATTRIBUTE_LINE = re.compile(r" {4}(\w+): (.+)")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a section: its name, the type of its value, its default (YAML in backticks), and what it means."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A config dataclass in words, and the dotted places at which the tree holds it; that of the root is empty."""

    places: tuple[str, ...]
    summary: str
    keys: tuple[Key, ...]


def sections(root: type, defaults: Mapping[str, str] = MappingProxyType({})) -> tuple[Section, ...]:
    """The dataclasses in the tree of `root`, in the order of their first place.

    `defaults` replaces the stated default of a dotted key that the loader fills in. Raises ValueError
    when a docstring leaves out a field or describes one that does not exist.
    """
    places: dict[type, list[str]] = {}
    for kind, place in walk(root):
        places.setdefault(kind, []).append(place)
    return tuple(_section(kind, tuple(names), defaults) for kind, names in places.items())


def _section(kind: type, places: tuple[str, ...], defaults: Mapping[str, str]) -> Section:
    summary, meanings = parse_docstring(kind)
    hints = typing.get_type_hints(kind)
    keys = (
        Key(
            name=field.name,
            type=yaml_type(hints[field.name]),
            default=defaults.get(join(places[0], field.name)) or _default(field),
            meaning=meanings[field.name],
        )
        for field in dataclasses.fields(kind)
    )
    return Section(places=places, summary=summary, keys=tuple(keys))


def markdown(section: Section) -> str:
    """A heading, the summary, and a table of the keys."""
    place, *others = section.places
    parts = [f"## {', '.join(f'`{name}`' for name in section.places)}" if place else "## Top level", section.summary]
    if others:
        *head, last = (f"`{name}`" for name in others)
        names = f"{', '.join(head)} and {last}" if head else last
        parts.append(f"The table lists the keys of `{place}`. The keys of {names} are the same.")
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in section.keys:
        meaning = key.meaning.replace("|", r"\|")
        rows.append(f"| `{join(place, key.name)}` | {key.type} | {key.default} | {meaning} |")
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
