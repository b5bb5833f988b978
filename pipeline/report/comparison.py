"""The comparison of runs: what differs in their configurations, their figures, and their curves over each other."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.report.charts import MAX_LABEL_CHARACTERS, line_chart
from pipeline.report.curves import curve_of, figure_names
from pipeline.report.figures import percent
from pipeline.report.page import render_page
from pipeline.report.sections import STAGE_CURVES
from pipeline.report.summary import RunSummary
from pipeline.runtime.quantities import duration

# Keys that name a run, and do not change it.
NOT_COMPARED = ("name", "shards_dir", "checkpoints_dir", "object_store", "sinks")
# Sections that say how images are made, and score them.
OF_SYNTHESIS = ("synthesis", "verifier", "ensemble")
SHARES = ("top1", "top5", "agreement", "accuracy_retention", "probability", "top1_among_classes")
ABSENT = "-"


def different_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys of the configuration whose values are not the same in all runs that they apply to."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    return [key for key in keys if len({_value_text(run, key) for run in runs if _applies(run, key)}) > 1]


def _applies(run: RunSummary, key: str) -> bool:
    """Whether a key changes a run; one that learned from given sets made no images."""
    return not run.config.get("distill.shards") or key.partition(".")[0] not in OF_SYNTHESIS


def _value_text(run: RunSummary, key: str, absent: str = ABSENT) -> str:
    """The value of a key as YAML writes it in one line."""
    if key not in run.config or not _applies(run, key):
        return absent
    text = yaml.safe_dump(run.config[key], default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _all_figures(runs: Sequence[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.figures))


def comparison_rows(runs: Sequence[RunSummary]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows of (name, text of each run): the keys that differ, and the figures."""
    keys = [(key, *(_value_text(run, key) for run in runs)) for key in different_keys(runs)]
    figures = [(name, *(_to_text(name, run.figures.get(name)) for run in runs)) for name in _all_figures(runs)]
    return keys, figures


def _to_text(name: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    if name.endswith(SHARES):
        return percent(value)
    if name.endswith("_s"):
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def comparison_lines(runs: Sequence[RunSummary]) -> list[str]:
    """The comparison as a table of text: a line for each key that differs and each figure, a column for each run."""
    keys, figures = comparison_rows(runs)
    header = ("", *(run.name for run in runs))
    widths = [max(map(len, column)) for column in zip(header, *keys, *figures, strict=True)]
    separator = tuple("-" * width for width in widths)
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (header, separator, *keys, *([separator] if keys else []), *figures)
    ]


def comparison_csv(runs: Sequence[RunSummary]) -> str:
    """The comparison as CSV with a line for each run: its name, its figures, the keys that differ."""
    keys, names = different_keys(runs), _all_figures(runs)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["run", *names, *keys], restval="", lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerow({"run": run.name, **run.figures, **{key: _value_text(run, key, "") for key in keys}})
    return buffer.getvalue()


def render_comparison(runs: Sequence[RunSummary]) -> str:
    """The HTML page of a comparison."""
    keys, figures = comparison_rows(runs)
    return render_page("compare.html", runs=runs, keys=keys, figures=figures, curves=_curves(runs))


def _curves(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """A chart for each figure of each stage, with a curve for each run that has it."""
    charts, labels = [], _labels([run.name for run in runs])
    for stage, (title, x_label) in STAGE_CURVES.items():
        by_run = [[line for line in run.lines if line["stage"] == stage] for run in runs]
        for name in figure_names([line for lines in by_run for line in lines]):
            curves = [
                curve_of(lines, name, label)
                for label, lines in zip(labels, by_run, strict=True)
                if any(name in line for line in lines)
            ]
            ends = ", ".join(f"{curve.label} {curve.smooth[-1]:.4g}" for curve in curves)
            svg = line_chart(f"{stage}-{name}", curves, x_label, f"{title}: {name} over {x_label}, at the end {ends}")
            charts.append({"title": f"{title}: {name}", "svg": svg})
    return charts


def _labels(names: Sequence[str]) -> Sequence[str]:
    """Names for a chart: long ones without the words that all of them start with."""
    if max(map(len, names)) <= MAX_LABEL_CHARACTERS:
        return names
    start = 0
    for i, characters in enumerate(zip(*names, strict=False)):
        if len(set(characters)) > 1:
            break
        if characters[0] in "/_-":
            start = i + 1
    return [f"…{name[start:]}" if start else name for name in names]
