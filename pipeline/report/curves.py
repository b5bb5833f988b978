"""Curves of the figures in metric lines: means over batches, their range, and the smoothed mean."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Keys of a metric line that are not figures of a loss.
NOT_CURVES = ("stage", "round", "batch", "step", "elapsed_s", "cores", "gpus", "peak_memory_bytes", "lr")
# Points of a curve; neighbors are averaged if there are more.
MAX_POINTS = 200
# The smoothed curve is a running mean over this share of the points.
SMOOTHED_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure over `steps` (P,): its `mean` over batches, the least and the largest value, and the smoothed mean."""

    label: str
    steps: Values
    mean: Values
    low: Values
    high: Values
    smooth: Values


def figure_names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the figures in metric lines, in the order in which they first appear."""
    return list(dict.fromkeys(name for line in lines for name in line if name not in NOT_CURVES))


def curve_of(lines: Iterable[Mapping[str, Any]], name: str, label: str = "") -> Curve:
    """The curve of one figure; lines of the same step, which are those of several batches, make one point."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if name in line:
            by_step[line["step"]].append(line[name])
    steps = sorted(by_step)
    mean = _thinned([sum(by_step[step]) / len(by_step[step]) for step in steps])
    return Curve(
        label=label,
        steps=_thinned(steps),
        mean=mean,
        low=_thinned([min(by_step[step]) for step in steps]),
        high=_thinned([max(by_step[step]) for step in steps]),
        smooth=smoothed(mean),
    )


def smoothed(values: Values) -> Values:
    """The running mean (P,) of values (P,), centered, over fewer points at both ends."""
    reach = int(len(values) * SMOOTHED_SHARE / 2)
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _thinned(values: Sequence[float]) -> Values:
    """At most MAX_POINTS values: the means of equally many neighbors."""
    size = -(-len(values) // MAX_POINTS) or 1
    return np.array([np.mean(values[i : i + size]) for i in range(0, len(values), size)], dtype=np.float64)
