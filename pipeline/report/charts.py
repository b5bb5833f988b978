"""Charts as SVG that is part of a page: text stays text, and colors are the page's, so that both themes read well.

Matplotlib draws with stand-in colors, which are then replaced by the CSS variables of the page.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from pipeline.report.curves import Curve, Values

# Stand-in colors and their CSS variables in style.css.
SOFT, LINE = "#010101", "#020202"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
# After as many lines as there are colors, the next ones are dashed, and their labels say so.
DASHES = (("-", ""), ("--", "╌ "), (":", "┈ "), ("-.", "┄ "))
VARIABLES = {SOFT: "--soft", LINE: "--line"} | {color: f"--series-{i}" for i, color in enumerate(SERIES)}
# Width and height in inches of 72 units; the page scales the width to that of the column.
WIDTH_IN, HEIGHT_IN = 5.0, 2.6
# Above this ratio of the largest to the smallest value, a linear axis would hide the smaller values.
LOG_RATIO = 30.0
# Least distance of two labels at the ends of lines, as a share of the height.
LABEL_SHARE = 0.09
# Intervals of an axis of steps, so few that labels of millions stay apart.
MAX_STEP_INTERVALS = 5
HISTOGRAM_BINS = 20
MAX_LABEL_CHARACTERS = 24
STYLE: dict[Any, Any] = {  # matplotlib's own type lists every key of its version
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a title is a $
    "font.size": 11,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
Label = tuple[float, str, str]


def chart(name: str, description: str, draw: Callable[[Axes], None], height_in: float = HEIGHT_IN) -> Markup:
    """The SVG that `draw` makes of empty axes; `name` is unique on the page, screen readers say `description`."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the browser has fonts for the characters of all languages
            figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    return _inline(buffer.getvalue().decode(), description)


def _inline(svg: str, description: str) -> Markup:
    """The <svg> element of a file, without what only a file needs, in the colors and the font of the page."""
    body = svg[svg.index("<svg") : svg.rindex("</svg>")].partition(">")[2]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->|font-family: [^;\"]*;?", "", body, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#(\w+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)  # hundredths of a unit
    body = re.sub(r"\s+", " ", body).replace("> <", "><")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size
    return Markup('<svg role="img" {} aria-label="{}">{}</svg>').format(Markup(size[0]), description, Markup(body))


def line_chart(name: str, curves: Sequence[Curve], x_label: str, description: str) -> Markup:
    """Smoothed curves over their means, with labels at the ends of the lines: the last value for an empty label.

    A single curve has the range over batches.
    """

    def draw(axes: Axes) -> None:
        if _spans_decades(np.concatenate([curve.mean for curve in curves])):
            _use_log_scale(axes)
        labels: list[Label] = []
        for i, (curve, color) in enumerate(zip(curves, _colors(len(curves)), strict=True)):
            dashes, sign = DASHES[i // len(SERIES) % len(DASHES)]
            if len(curves) == 1 and (curve.high > curve.low).any():
                axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
            marker = "o" if len(curve.steps) == 1 else ""
            axes.plot(curve.steps, curve.mean, color=color, alpha=0.35, linewidth=0.8)
            axes.plot(curve.steps, curve.smooth, color=color, linewidth=1.6, linestyle=dashes, marker=marker)
            labels.append((curve.smooth[-1], sign + (_short(curve.label) or f"{curve.smooth[-1]:.3g}"), color))
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(MAX_STEP_INTERVALS, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.margins(x=0)
        _label_ends(axes, labels)

    return chart(name, description, draw)


def _colors(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _spans_decades(values: Values) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > LOG_RATIO)


def _use_log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label right of the axes, at its value, or above the one below if they would overlap."""
    low, high = axes.get_ylim()

    def height(value: float) -> float:
        if axes.get_yscale() == "log":
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    position = -math.inf
    for value, text, color in sorted(labels, key=lambda label: label[0]):
        position = max(height(value), position + LABEL_SHARE)
        place = ("axes fraction", "axes fraction")
        axes.annotate(text, (1, position), (4, 0), xycoords=place, textcoords="offset points", color=color, va="center")


def _short(text: str) -> str:
    """A label that leaves room for the chart: of a long text, both ends, since names of runs often differ there."""
    kept = (MAX_LABEL_CHARACTERS - 1) // 2
    return text if len(text) <= MAX_LABEL_CHARACTERS else f"{text[:kept]}…{text[-kept:]}"


def histogram_chart(
    name: str, values: Mapping[str, Sequence[float]], labels: tuple[str, str], description: str
) -> Markup:
    """For each name, the share of its values in each of equally wide bins from 0 to 1, or to the largest value.

    `labels` say what is counted over, and what is counted, in percent.
    """

    def draw(axes: Axes) -> None:
        high = max(1.0, *(max(numbers, default=0.0) for numbers in values.values()))
        for i, ((label, numbers), color) in enumerate(zip(values.items(), _colors(len(values)), strict=True)):
            counts, edges = np.histogram(numbers, bins=HISTOGRAM_BINS, range=(0, high))
            axes.stairs(100 * counts / max(1, counts.sum()), edges, color=color, linewidth=1.6)
            axes.stairs(100 * counts / max(1, counts.sum()), edges, color=color, alpha=0.15, fill=True)
            axes.text(0.03, 0.9 - 0.12 * i, label, color=color, transform=axes.transAxes)
        axes.set_xlim(0, high)
        axes.set_ylim(0, None)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])

    return chart(name, description, draw)


def dot_chart(
    name: str, titles: Sequence[str], values: Mapping[str, Sequence[float | None]], x_label: str, description: str
) -> Markup:
    """A row for each title, with a dot for each name; None is no dot. The names stand above the first row."""

    def draw(axes: Axes) -> None:
        rows = np.arange(len(titles))
        numbers = np.array(list(values.values()), dtype=np.float64)
        if len(values) == 2:
            axes.hlines(rows, numbers[0], numbers[1], color=LINE, linewidth=3, clip_on=False)
        for i, (label, color) in enumerate(zip(values, _colors(len(values)), strict=True)):
            mark = "\N{WHITE CIRCLE}" if i else "\N{BLACK CIRCLE}"  # equal values stay visible in each other
            style: dict[str, Any] = {"markersize": 9, "fillstyle": "none"} if i else {"markersize": 5}
            axes.plot(numbers[i], rows, "o", color=color, clip_on=False, **style)
            axes.text(0.5 * i, 1.0, f"{mark} {label}", color=color, transform=axes.transAxes, va="bottom")
        axes.set_yticks(rows, [_short(title) for title in titles])
        axes.set_ylim(len(titles) - 0.5, -0.5)
        _end_at_100(axes)
        axes.set_xlabel(x_label)

    return chart(name, description, draw, height_in=0.9 + 0.2 * len(titles))


def _end_at_100(axes: Axes) -> None:
    """Let the axis of percentages up to 100 end there, and that of any from 0 on start there."""
    low, high = axes.get_xlim()
    axes.set_xlim(max(0.0, low), min(100.0, high) if axes.dataLim.x1 <= 100 else high)


def scatter_chart(name: str, xs: Values, ys: Values, labels: tuple[str, str], description: str) -> Markup:
    """A dot for each pair of percentages, and the diagonal on which they are equal."""

    def draw(axes: Axes) -> None:
        low = min(xs.min(), ys.min())
        axes.plot([low, 100], [low, 100], color=SOFT, linewidth=0.8, linestyle="--")
        axes.plot(xs, ys, "o", color=SERIES[0], markersize=3, alpha=0.4, markeredgewidth=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])

    return chart(name, description, draw, height_in=3.4)


def reliability_chart(name: str, bins: Mapping[str, Mapping[str, Sequence[float | None]]], description: str) -> Markup:
    """Accuracy over confidence, a dot for each bin with images, for each network, and the diagonal of calibration."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=SOFT, linewidth=0.8, linestyle="--")
        for i, ((label, columns), color) in enumerate(zip(bins.items(), _colors(len(bins)), strict=True)):
            confidence, top1 = (100 * np.array(columns[key], dtype=np.float64) for key in ("confidence", "top1"))
            counts = np.array(columns["num_images"], dtype=np.float64)
            shown = counts > 0
            axes.plot(confidence[shown], top1[shown], color=color, linewidth=1.2)
            sizes = 8 + 120 * counts[shown] / counts.sum()
            axes.scatter(confidence[shown], top1[shown], s=sizes, color=color, alpha=0.7, linewidths=0, zorder=3)
            axes.text(0.03, 0.92 - 0.09 * i, label, color=color, transform=axes.transAxes)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("top-1, %")

    return chart(name, description, draw, height_in=3.4)
