"""The config keys as `--help` and completion show them, read from a file: their classes would import PyTorch."""

import json
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from textwrap import fill, indent

from pipeline.runtime.config import join, nearest, parse
from pipeline.runtime.reference import Key, Section
from stages.outcome import UsageError

# Written by `make docs`.
FILE = Path(__file__).with_name("config_keys.json")
# Columns of the keys and defaults in a list; longer ones get a line of their own.
KEY_COLUMNS = 28
MAX_COLUMNS = 120
# What `yaml_type` calls a bool, and types of any number of values.
SWITCH, OPEN_TYPES = "true or false", ("text", "mapping", "value")


@cache
def read_sections() -> tuple[Section, ...]:
    """All sections of a config."""
    return parse(tuple[Section, ...], json.loads(FILE.read_text()))


def sections_under(tops: Iterable[str]) -> list[Section]:
    """The sections at these places or below; "" is the root alone."""
    return [s for s in read_sections() if any(_is_under(place, top) for place in s.places for top in tops)]


def _is_under(place: str, top: str) -> bool:
    return place == top or (top != "" and place.startswith(f"{top}."))


def dotted_keys() -> list[str]:
    """Every key that takes a value, at every place, as an override names it; items of lists as item 0."""
    return [
        _override(place, key.name)
        for section in read_sections()
        for place in section.places
        for key in _own_keys(section)
    ]


def choices(key: Key) -> list[str]:
    """The values of a key that has only a few."""
    values = re.split(", | or ", key.type)
    is_open = len(values) == 1 or any(" " in value or value in OPEN_TYPES for value in values)
    return [] if is_open else values


def choices_at(dotted: str) -> list[str]:
    """The values of the key that an override names, if it has only a few."""
    keys = (k for s in read_sections() for place in s.places for k in s.keys if _override(place, k.name) == dotted)
    return next(map(choices, keys), [])


def _override(place: str, name: str) -> str:
    return join(place, name).replace(".N", ".0")


def _own_keys(section: Section) -> list[Key]:
    """The keys of a section without those that are only sections themselves."""
    places = {place for other in read_sections() for place in other.places}
    return [k for k in section.keys if join(section.places[0], k.name) not in places or "null" in k.type]


def list_keys(section: Section) -> str:
    """The places of a section, and each key with its default and the first sentence about it."""
    names = ", ".join(section.places) if section.places[0] else "top level"
    return "\n".join([f"{names}:", *map(_entry, _own_keys(section))])


def _entry(key: Key) -> str:
    default, sentence = key.default.replace("`", ""), key.meaning.replace("`", "").partition(". ")[0].rstrip(".")
    if choices(key) and key.type != SWITCH:
        sentence = f"{key.type}: {sentence}"
    label, column = f"  {key.name} ({default})", " " * KEY_COLUMNS
    text = fill(sentence, _width(), initial_indent=column, subsequent_indent=column)
    return label + text[len(label) :] if len(label) < KEY_COLUMNS else f"{label}\n{text}"


def describe_key(dotted: str) -> str:
    """All about a key, or about a section and its keys; raises UsageError when there is neither."""
    sections = read_sections()
    at_place = {place: section for section in sections for place in section.places}
    by_key = {join(place, key.name): key for section in sections for place in section.places for key in section.keys}
    name = ".".join("N" if part.isdigit() else part for part in dotted.split("."))
    if name not in at_place and name not in by_key:
        fix = nearest(name, [*at_place, *by_key]) or "; `help` lists the commands, and `help run` the keys"
        raise UsageError(f"{dotted} is neither a command nor a config key{fix}")
    parts = [_full(name, by_key[name])] if name in by_key else []
    if section := at_place.get(name):
        parts += [fill(section.summary, _width()), *(_full(join(name, key.name), key) for key in section.keys)]
    return "\n\n".join(parts)


def _full(name: str, key: Key) -> str:
    facts = f"{name}\n  {key.type}; {'required' if key.default == 'required' else f'default: {key.default}'}"
    return f"{facts}\n{indent(fill(key.meaning, _width() - 2), '  ')}"


def _width() -> int:
    """The columns of a line of help: those of the terminal, up to a number that is still easy to read."""
    return min(shutil.get_terminal_size().columns, MAX_COLUMNS)
