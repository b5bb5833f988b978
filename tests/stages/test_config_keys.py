"""What the help says about config keys: lists in the width of the terminal, and all about one key or section."""

import pytest

from stages.config_keys import KEY_COLUMNS, describe_key, dotted_keys, list_keys, read_sections, sections_under
from stages.outcome import UsageError


def test_sections_under_a_place_are_it_and_those_below():
    places = [section.places[0] for section in sections_under(["synthesis.inversion", ""])]
    assert places[:2] == ["", "synthesis.inversion"]
    assert "synthesis.inversion.terms" in places
    assert "synthesis" not in places


def test_dotted_keys_are_those_that_take_a_value():
    keys = dotted_keys()
    assert {"seed", "student.source", "synthesis.inversion.phases.0.steps", "teacher_training"} <= set(keys)
    assert not {"synthesis", "synthesis.inversion"} & set(keys)  # sections that are required
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("width", [60, 100])
def test_list_fits_the_terminal_and_aligns_the_meanings(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for section in read_sections():
        _, *lines = list_keys(section).splitlines()
        assert max(map(len, lines)) <= width
        assert all(line[KEY_COLUMNS - 1] == " " for line in lines if line.startswith(" " * 3))


def test_key_of_a_list_item_is_explained():
    assert describe_key("synthesis.inversion.phases.0.steps") == (
        "synthesis.inversion.phases.N.steps\n  whole number; required\n  Optimization steps of this phase, at least 1."
    )


def test_section_is_explained_with_its_keys():
    text = describe_key("synthesis.inversion.terms")
    assert "synthesis.inversion.terms.competition\n  finite number; default: `0.0`" in text


def test_unknown_key_raises_with_the_nearest():
    with pytest.raises(UsageError, match=r"seeds is neither a command nor a config key; did you mean seed\?"):
        describe_key("seeds")
