"""Ranges of indices, split evenly."""


def even_ranges(total: int, parts: int) -> list[range]:
    """`range(total)` cut into `parts` consecutive ranges whose lengths differ by at most one."""
    return [range(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def batch_ranges(total: int, batch_size: int) -> list[range]:
    """`range(total)` in the fewest batches of at most `batch_size`; their lengths differ by at most one."""
    return even_ranges(total, -(-total // batch_size))
