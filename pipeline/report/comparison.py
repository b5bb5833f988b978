"""The comparison of runs: what differs in their configurations, their figures, and their curves over each other."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.remote import folder_of_given
from pipeline.data.shards import MANIFEST, is_packed, read_manifest
from pipeline.identity import CONFIG_FILE
from pipeline.report.charts import MAX_LABEL_CHARACTERS, line_chart
from pipeline.report.curves import curve_of, figure_names
from pipeline.report.figures import percent
from pipeline.report.page import render_page
from pipeline.report.sections import STAGE_CURVES
from pipeline.runtime.config import nearest
from pipeline.runtime.files import read_json
from pipeline.runtime.fingerprint import flatten
from pipeline.runtime.quantities import duration
from pipeline.runtime.recorder import read_metrics, seconds_of_stages

# Keys that name a run, and do not change it.
NOT_COMPARED = ("name", "shards_dir", "checkpoints_dir", "sinks")
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


def read_summary(name: str, checkpoints_dir: Path, shards_dir: Path | None = None) -> RunSummary:
    """The summary of a run, named by its folder in `checkpoints_dir` or by the path of that folder.

    Its images are where the config of its evaluation says. Those of a run without one are in `shards_dir`, by default
    `shards` beside `checkpoints_dir`; if it is given, also those that have moved. Raises ValueError for a run that does
    not exist, that has neither images nor an evaluation with its config, or whose evaluation another version wrote.
    """
    folder = Path(name) if "/" in name else checkpoints_dir / name
    shards = (shards_dir or folder.parent.parent / "shards") / folder.name
    if not folder.is_dir() and not shards.is_dir():
        known = sorted(path.name for path in checkpoints_dir.glob("*") if path.is_dir())
        raise ValueError(
            f"there is no run {name}: no folder {folder}{nearest(name, known)} (runs: {', '.join(known) or 'none'})"
        )
    evaluation = _last_evaluation(folder)
    stated = (evaluation or {}).get("config")
    config = stated or _config_of_images(shards)
    if config is None:
        lack = "an evaluation without its config" if evaluation else "no evaluation"
        raise ValueError(
            f"{folder} has {lack}, and {shards} no images; run the stage `evaluate`, or name the folder that holds "
            "the folder of its images: --shards-dir FOLDER"
        )
    if stated and (shards_dir is None or _stated_shards(folder, stated).is_dir()):
        shards = _stated_shards(folder, stated)
    folders = _given_folders(folder, config) or [path.parent for path in sorted(shards.glob(f"*/{MANIFEST}"))]
    manifests = [read_manifest(path) for path in folders if is_packed(path)]
    lines = [line for path in sorted(folder.glob("metrics*.jsonl")) for line in read_metrics(path)]
    times = {f"{stage}_s": seconds for stage, seconds in seconds_of_stages(lines).items()}
    notes = [] if evaluation else ["not evaluated: run the stage `evaluate`"]
    notes += [f"no images in {path}" for path in (folders or [shards]) if not is_packed(path)]
    return RunSummary(
        name=name,
        config=dict(flatten(config)),
        figures={**_evaluation_figures(evaluation), **_image_figures(manifests), **times},
        lines=lines,
        notes=notes,
    )


def _stated_shards(folder: Path, config: Mapping[str, Any]) -> Path:
    """Where the images of a run lie by its config."""
    return Path(_root(folder, config), config["shards_dir"], config["name"])


def _given_folders(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The folders of the sets that `distill.shards` names; a config of an earlier version has no such key."""
    root, names = _root(folder, config), config["distill"].get("shards", ())
    return [root / folder_of_given(name, config["shards_dir"]) for name in names]


def _root(folder: Path, config: Mapping[str, Any]) -> Path:
    """The folder that relative paths of a run start from, since that of its checkpoints lies in `checkpoints_dir`."""
    checkpoints_dir = Path(config["checkpoints_dir"])
    if checkpoints_dir.is_absolute() or ".." in checkpoints_dir.parts:
        return Path()
    return Path(os.path.normpath(folder.parent.joinpath(*(".." for _ in checkpoints_dir.parts))))


def _last_evaluation(folder: Path) -> Mapping[str, Any] | None:
    """The evaluation of the last round that has one; raises ValueError when another version wrote it."""
    files = {path.stem.removeprefix("eval-"): path for path in folder.glob("eval-*.json")}
    rounds = {int(number): path for number, path in files.items() if number.isdecimal()}  # the user may have others
    if not rounds:
        return None
    path = rounds[max(rounds)]
    evaluation = read_json(path)
    missing = {"student", "teacher", "accuracy_retention"} - evaluation.keys()
    if missing:
        raise ValueError(
            f"another version wrote {path} (it has no {', '.join(sorted(missing))}); run the stage `evaluate` again"
        )
    return evaluation


def _config_of_images(shards: Path) -> Mapping[str, Any] | None:
    paths = sorted(shards.glob(f"*/{CONFIG_FILE}"))
    config: Mapping[str, Any] | None = yaml.safe_load(paths[-1].read_bytes()) if paths else None
    return config


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
    """The number of images of all sets, and the mean of each score over the images that have it."""
    figures: Figures = {"images": sum(manifest["num_images"] for manifest in manifests)} if manifests else {}
    for name in dict.fromkeys(name for manifest in manifests for name in manifest["scores"]):
        scored = [manifest for manifest in manifests if name in manifest["scores"]]
        total = sum(manifest["num_images"] * manifest["scores"][name] for manifest in scored)
        figures[f"images_{name}"] = total / sum(manifest["num_images"] for manifest in scored)
    return figures


def different_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys of the configuration whose values are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    return [key for key in keys if len({_value_text(run, key) for run in runs}) > 1]


def _value_text(run: RunSummary, key: str, absent: str = ABSENT) -> str:
    """The value of a key as YAML writes it in one line."""
    if key not in run.config:
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
