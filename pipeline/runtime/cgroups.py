"""Limits of the control groups around this process, such as those of a container or a batch system (Linux)."""

import math
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def core_limit() -> float:
    """The number of cores of the tightest CPU quota; infinite without one."""
    limits = [math.inf]
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max")
        if not words:  # version 1
            words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit():  # else "max", or -1: no quota
            limits.append(int(words[0]) / int(words[1]))
    return min(limits)


def free_memory_bytes() -> float:
    """Free bytes of the group with the least left; cached files do not count as used. Infinite without a limit."""
    free = [math.inf]
    for folder in _folders("memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdigit():
            statistics = _words(folder / "memory.stat")
            droppable = dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", "0")
            free.append(max(0, int(limit[0]) - int(used[0]) + int(droppable)))
    return min(free)


def _folders(controller: str) -> Iterator[Path]:
    """The group of this process and its ancestors. In a container the path may not exist, but the root does."""
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controller if controllers else ROOT
        folder = root / path.lstrip("/")
        yield folder
        while folder != root and root in folder.parents:
            folder = folder.parent
            yield folder


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
