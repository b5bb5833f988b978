"""The reference of config keys, and docs/configuration.md that is written with it."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pipeline.run import RENAMED_KEYS, RunConfig
from pipeline.runtime.reference import markdown, parse_docstring, sections
from stages.config_keys import FILE
from stages.reference import PATH, document, keys


@dataclass
class Leaf:
    """One leaf.

    Attributes:
        rate: Rate, positive; given as
            a|b.
    """

    rate: float


@dataclass
class LongLeaf(Leaf):
    """A long leaf.

    Attributes:
        length: Length in pixels.
    """

    length: int = 3


@dataclass
class Tree:
    """A tree.

    It has leaves.

    Attributes:
        mode: What it does.
        left: One side.
        right: The other side.
        parts: All parts.
        options: Anything.
    """

    left: Leaf
    right: Leaf | None = None
    parts: tuple[LongLeaf, ...] = ()
    mode: Literal["auto", True, False] = "auto"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Partial:
    """One of two fields is described.

    Attributes:
        first: The first.
    """

    first: int
    second: int


@dataclass
class Stale:
    """A field was removed.

    Attributes:
        first: The first.
        removed: It is gone.
    """

    first: int


def reference(root: type, *defaults) -> str:
    return "\n\n".join(map(markdown, sections(root, *defaults)))


@pytest.mark.parametrize(
    "row",
    [
        "| `mode` | auto, true or false | `auto` | What it does. |",
        "| `left` | mapping | required | One side. |",
        "| `right` | mapping or null | `null` | The other side. |",
        "| `parts` | list of mappings | `[]` | All parts. |",
        "| `options` | mapping | `{}` | Anything. |",
        r"| `left.rate` | finite number | required | Rate, positive; given as a\|b. |",
        "| `parts.N.length` | whole number | `3` | Length in pixels. |",
    ],
)
def test_row_has_key_type_default_and_meaning(row):
    assert row in reference(Tree).splitlines()


def test_dataclass_under_two_keys_has_one_table():
    assert [section.places for section in sections(Tree)] == [("",), ("left", "right"), ("parts.N",)]
    assert "## `left`, `right`" in reference(Tree)


def test_inherited_fields_are_described_by_the_parent():
    assert parse_docstring(LongLeaf)[1].keys() == {"rate", "length"}


def test_text_before_the_attributes_is_the_summary():
    assert parse_docstring(Tree)[0] == "A tree.\n\nIt has leaves."


def test_default_of_the_loader_replaces_that_of_the_dataclass():
    assert "| `left` | mapping | a stem | One side. |" in reference(Tree, {"left": "a stem"})


def test_field_without_description_raises():
    with pytest.raises(ValueError, match="Partial: the docstring describes no second"):
        reference(Partial)


def test_description_without_field_raises():
    with pytest.raises(ValueError, match="Stale: the docstring describes removed, which is no field"):
        reference(Stale)


@pytest.mark.parametrize("section", sections(RunConfig), ids=lambda section: section.places[0])
def test_every_key_is_described_by_sentences(section):
    assert all(re.match(r"[A-Z`].*[.]$", key.meaning) for key in section.keys)


@pytest.mark.parametrize(("path", "text"), [(PATH, document()), (FILE, keys())], ids=["docs", "help"])
def test_written_reference_is_current(path, text):
    assert path.read_text() == text, "run `make docs`"


def test_configuration_md_names_every_former_key():
    text = PATH.read_text()
    former = {old: new for old, new in RENAMED_KEYS.items() if "init_noise" not in old}  # the section's new name
    assert all(f"| `{old}` | `{new}` |" in text for old, new in former.items())
