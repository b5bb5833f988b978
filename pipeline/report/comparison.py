"""The comparison of runs: what differs in their configurations, their figures, and their curves over each other."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.shards import MANIFEST, read_manifest
from pipeline.identity import CONFIG_FILE
from pipeline.report.charts import line_chart
from pipeline.report.curves import curve_of, figure_names
from pipeline.report.figures import percent
from pipeline.report.page import render_page
from pipeline.report.sections import STAGE_CURVES
from pipeline.runtime.config import nearest
from pipeline.runtime.files import read_json
from pipeline.runtime.quantities import duration
from pipeline.runtime.recorder import read_metrics, seconds_of_stages

# Keys that name a run, and do not change it.
NOT_COMPARED = ("name", "shards_dir", "checkpoints_dir")
SHARES = ("top1", "top5", "agreement", "accuracy_retention", "probability", "top1_among_classes")
ABSENT = "-"
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as it is compared: its configuration by dotted key, its figures, its metric lines, and what it lacks."""

    name: str
    config: Mapping[str, Any]
    figures: Figures
    lines: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def read_summary(name: str, checkpoints_dir: Path) -> RunSummary:
    """The summary of a run, named by its folder in `checkpoints_dir` or by the path of that folder.

    Raises ValueError for a run that does not exist, that has neither images nor an evaluation with its config, or whose
    evaluation another version wrote.
    """
    folder = Path(name) if "/" in name else checkpoints_dir / name
    shards = folder.parent.parent / "shards" / folder.name
    if not folder.is_dir() and not shards.is_dir():
        known = sorted(path.name for path in checkpoints_dir.glob("*") if path.is_dir())
        raise ValueError(
            f"there is no run {name}: no folder {folder}{nearest(name, known)} (runs: {', '.join(known) or 'none'})"
        )
    evaluation = _last_evaluation(folder)
    config = (evaluation or {}).get("config") or _config_of_images(shards)
    if config is None:
        lack = "an evaluation without its config" if evaluation else "no evaluation"
        raise ValueError(f"{folder} has {lack}, and {shards} no images; run the stage `evaluate` or `synthesize`")
    if not shards.is_dir():
        shards = Path(config["shards_dir"]) / config["name"]
    manifests = [read_manifest(path.parent) for path in sorted(shards.glob(f"*/{MANIFEST}"))]
    lines = [line for path in sorted(folder.glob("metrics*.jsonl")) for line in read_metrics(path)]
    times = {f"{stage}_s": seconds for stage, seconds in seconds_of_stages(lines).items()}
    notes = [] if evaluation else ["not evaluated: run the stage `evaluate`"]
    notes += [] if manifests else [f"no images in {shards}"]
    return RunSummary(
        name=name,
        config=dict(_flattened(config)),
        figures={**_evaluation_figures(evaluation), **_image_figures(manifests), **times},
        lines=lines,
        notes=notes,
    )


def _last_evaluation(folder: Path) -> Mapping[str, Any] | None:
    """The evaluation of the last round that has one; raises ValueError when another version wrote it."""
    paths = sorted(folder.glob("eval-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    if not paths:
        return None
    evaluation = read_json(paths[-1])
    missing = {"student", "teacher", "accuracy_retention"} - evaluation.keys()
    if missing:
        raise ValueError(
            f"another version wrote {paths[-1]} (it has no {', '.join(sorted(missing))}); run the stage "
            "`evaluate` again"
        )
    return evaluation


def _config_of_images(shards: Path) -> Mapping[str, Any] | None:
    paths = sorted(shards.glob(f"*/{CONFIG_FILE}"))
    config: Mapping[str, Any] | None = yaml.safe_load(paths[-1].read_bytes()) if paths else None
    return config


def _flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys, as `SET` names them, and their values."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield key, value
    for name, item in items:
        yield from _flattened(item, f"{key}.{name}" if key else str(name))


def _evaluation_figures(evaluation: Mapping[str, Any] | None) -> Figures:
    """The numbers of an evaluation under the names of its CSV file."""
    figures: Figures = {}
    for name, value in (evaluation or {}).items():
        if name in ("student", "teacher"):
            figures |= {f"{name}_{k}": v for k, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float) and name != "timed_batch":
            figures[name] = value
    return figures


def _image_figures(manifests: Sequence[Mapping[str, Any]]) -> Figures:
    """The number of images of all rounds, and the mean of each of their scores."""
    num_images = sum(manifest["num_images"] for manifest in manifests)
    figures: Figures = {"images": num_images} if manifests else {}
    for name in manifests[0]["scores"] if manifests else ():
        total = sum(manifest["num_images"] * manifest["scores"].get(name, 0.0) for manifest in manifests)
        figures[f"images_{name}"] = total / num_images
    return figures


def different_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys of the configuration whose values are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    return [key for key in keys if any(run.config.get(key, ABSENT) != runs[0].config.get(key, ABSENT) for run in runs)]


def _all_figures(runs: Sequence[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.figures))


def comparison_rows(runs: Sequence[RunSummary]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows of (name, text of each run): the keys that differ, and the figures."""
    keys = [(key, *(str(run.config.get(key, ABSENT)) for run in runs)) for key in different_keys(runs)]
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
        writer.writerow({"run": run.name, **run.figures, **{key: run.config.get(key, "") for key in keys}})
    return buffer.getvalue()


def render_comparison(runs: Sequence[RunSummary]) -> str:
    """The HTML page of a comparison."""
    keys, figures = comparison_rows(runs)
    return render_page("compare.html", runs=runs, keys=keys, figures=figures, curves=_curves(runs))


def _curves(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """A chart for each figure of each stage, with a curve for each run that has it."""
    charts = []
    for stage, (title, x_label) in STAGE_CURVES.items():
        by_run = {run.name: [line for line in run.lines if line["stage"] == stage] for run in runs}
        for name in figure_names([line for lines in by_run.values() for line in lines]):
            having = {run: lines for run, lines in by_run.items() if any(name in line for line in lines)}
            curves = [curve_of(lines, name, run) for run, lines in having.items()]
            ends = ", ".join(f"{curve.label} {curve.smooth[-1]:.4g}" for curve in curves)
            svg = line_chart(f"{stage}-{name}", curves, x_label, f"{title}: {name} over {x_label}, at the end {ends}")
            charts.append({"title": f"{title}: {name}", "svg": svg})
    return charts
