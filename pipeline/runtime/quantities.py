"""Durations and sizes in the unit that a person would choose."""


def duration(seconds: float) -> str:
    """Hours, minutes or seconds: `1.15 h`, `34.6 min`, `5.0 s`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def size(num_bytes: float) -> str:
    """GiB, MiB or KiB: `9.60 GiB`, `28.0 MiB`, `70.5 KiB`."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
