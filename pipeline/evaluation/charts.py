"""Line charts as self-contained SVG."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 36
COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
# Above this ratio of the largest to the smallest value, a linear axis would hide the smaller curves.
LOG_RATIO = 30.0
Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], x_label: str) -> str:
    """SVG of named curves of (x, y) points; the y axis is logarithmic if positive values span more than LOG_RATIO."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    if not xs:
        return "<p>no measurements</p>"
    log = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    ticks = _log_ticks(min(ys), max(ys)) if log else _linear_ticks(min(ys), max(ys))
    low, high = min(*ticks, *ys), max(*ticks, *ys)
    x_low, x_span = min(xs), (max(xs) - min(xs)) or 1.0

    def place_x(x: float) -> float:
        return LEFT + (x - x_low) / x_span * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks:
        y = place_y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _linear_ticks(x_low, x_low + x_span):
        if tick <= x_low + x_span:
            parts.append(f'<text x="{place_x(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_label)}</text>')
    for points, color in zip(series.values(), _colors(len(series)), strict=True):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    return "".join([*parts, "</svg>", _legend(series)])


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _legend(series: Mapping[str, Points]) -> str:
    items = (
        f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
        for name, color in zip(series, _colors(len(series)), strict=True)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _linear_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first = math.floor(low / step)
    return [round(i * step, 12) for i in range(first, math.ceil(max(high, low + step) / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten that enclose [low, high]."""
    return [10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
