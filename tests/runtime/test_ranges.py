"""Items that are evenly spaced."""

from pipeline.runtime.ranges import evenly_spaced


def test_evenly_spaced_items_include_both_ends():
    assert evenly_spaced("abc", 5) == ["a", "b", "c"]
    assert evenly_spaced(range(10), 4) == [0, 3, 6, 9]
    assert evenly_spaced(range(10), 1) == [0]
