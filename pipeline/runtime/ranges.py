"""Ranges of indices, split evenly, and items that are evenly spaced."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def even_ranges(total: int, parts: int) -> list[range]:
    """`range(total)` cut into `parts` consecutive ranges whose lengths differ by at most one."""
    return [even_range(total, parts, index) for index in range(parts)]


def even_range(total: int, parts: int, index: int) -> range:
    """The range of this index among `even_ranges(total, parts)`."""
    return range(total * index // parts, total * (index + 1) // parts)


def batch_ranges(total: int, batch_size: int) -> list[range]:
    """`range(total)` in the fewest batches of at most `batch_size`; their lengths differ by at most one."""
    return even_ranges(total, -(-total // batch_size))


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced, with the first and the last one."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]
