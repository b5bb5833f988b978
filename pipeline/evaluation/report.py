"""One self-contained HTML page of a run: figures, curves, synthetic images, confusion matrix, configuration."""

import base64
import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.codec import encode_image
from pipeline.evaluation.charts import Points, line_chart
from pipeline.runtime.recorder import seconds_of_stages

# Matrices of up to this many classes are shown as numbers, larger ones as a picture.
MAX_TABLE_CLASSES = 20
TILE_PX, PAGE_PX = 64, 1000
STAGES = ("teacher", "synthesize", "distill", "evaluate")
NOT_CURVES = ("stage", "round", "batch", "step", "elapsed_s", "lr")
STYLE = """
:root { color-scheme: light; --ink: #111827; --soft: #6b7280; --line: #e5e7eb; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); }
body { max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } .soft { color: var(--soft); }
table { border-collapse: collapse; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } .matrix td, .matrix th { padding: .2rem .5rem; text-align: right; }
.tiles td { padding: 0; border: 0; } .tiles th { border: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1.5rem; }
svg text { font-size: 12px; fill: var(--soft); } svg .grid { stroke: var(--line); }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
img { max-width: 100%; }
pre { background: #f9fafb; padding: 1rem; overflow: auto; font-size: 13px; }
"""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run left: the manifests of its rounds, its metric lines, the evaluation, and the estimate if there is one.

    `tiles` is uint8 (classes, images, C, H, W): some synthetic images of some classes, whose labels are `tile_labels`.
    """

    name: str
    manifests: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    tiles: Tensor
    tile_labels: Sequence[int]
    config_yaml: str
    estimate: Mapping[str, Any] | None = None


def render(run: RunRecord) -> str:
    """The HTML page of a run."""
    evaluation, titles = run.evaluation, run.evaluation["class_titles"]
    sections = {
        "Metrics": _metrics(evaluation) + _rounds(run.manifests) + _times(run.metrics, run.manifests, run.estimate),
        "Synthetic images, one class per row": _rows_of_tiles(run.tiles, [titles[label] for label in run.tile_labels]),
        "Curves": _curves(run.metrics),
        "Confusion matrix of the student: rows are labels, columns predictions": _confusion(
            evaluation["student"]["confusion"], titles
        ),
        "Configuration": f"<pre>{html.escape(run.config_yaml)}</pre>",
    }
    body = "".join(f"<h2>{html.escape(title)}</h2>{content}" for title, content in sections.items())
    title = html.escape(f"dreamdistill: {run.name}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head>'
        f'<body><h1>{title}</h1><p class="soft">{html.escape(evaluation["line"])}</p>{body}</body></html>\n'
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><tr>{head}</tr>{body}</table>'


def _metrics(evaluation: Mapping[str, Any]) -> str:
    shown = {
        "top-1": ("top1", "{:.2%}"),
        "top-5": ("top5", "{:.2%}"),
        "negative log-likelihood": ("nll", "{:.4f}"),
        "calibration error": ("calibration_error", "{:.4f}"),
        "parameters": ("parameters", "{:,}"),
        f"forward pass of {evaluation['timed_batch']} images, ms": ("forward_ms", "{:.2f}"),
    }
    rows = [
        [label, *(form.format(evaluation[network][key]) for network in ("student", "teacher"))]
        for label, (key, form) in shown.items()
    ]
    between = _table(
        ("between the two", ""),
        [
            ("accuracy retention: top-1 of the student / teacher", f"{evaluation['accuracy_retention']:.2%}"),
            ("agreement", f"{evaluation['agreement']:.2%}"),
            ("KL(teacher || student), nats", f"{evaluation['kl']:.4f}"),
        ],
    )
    return _table((f"on {evaluation['num_images']:,} real images", "student", "teacher"), rows) + "<p></p>" + between


def _rounds(manifests: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in manifests[0]["scores"] if all(name in m["scores"] for m in manifests)]
    rows = [
        [str(m["round"]), f"{m['num_images']:,}", *(f"{m['scores'][n]:.2%}" for n in names), m["fingerprint"]]
        for m in manifests
    ]
    return "<p></p>" + _table(("round", "images", *(n.replace("_", " ") for n in names), "fingerprint"), rows)


def _times(
    metrics: Sequence[Mapping[str, Any]],
    manifests: Sequence[Mapping[str, Any]],
    estimate: Mapping[str, Any] | None,
) -> str:
    seconds = seconds_of_stages(metrics)
    rows = [(stage, f"{seconds[stage]:.1f}") for stage in STAGES if stage in seconds]
    table = "<p></p>" + _table(("stage", "seconds of work, all processes"), rows)
    if estimate is None:
        return table
    stored = sum(size for m in manifests for shard in m["shards"] for size in shard["sizes"])
    compared = [
        (f"{stage}, seconds", f"{estimate[f'{stage}_s']:.1f}", f"{seconds[stage]:.1f}")
        for stage in ("synthesize", "distill")
        if stage in seconds
    ]
    compared.append(("images, MiB", f"{estimate['shard_bytes'] / 2**20:.1f}", f"{stored / 2**20:.1f}"))
    return table + "<p></p>" + _table(("", "estimated", "measured"), compared)


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for stage, title, x_label in (
        ("synthesize", "Inversion: weighted loss terms, mean over batches", "step of a batch"),
        ("distill", "Distillation loss", "step"),
        ("teacher", "Training loss of the teacher", "step"),
    ):
        lines = [line for line in metrics if line["stage"] == stage]
        if lines:
            charts.append(f"<div><h3>{title}</h3>{line_chart(_series(lines), x_label)}</div>")
    return f'<div class="charts">{"".join(charts)}</div>'


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """The mean of each figure over lines of the same round and step, as points over steps."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    several = len({line.get("round") for line in lines}) > 1
    for line in lines:
        for name in line.keys() - set(NOT_CURVES):
            curve = f"{name}, round {line['round']}" if several else name
            values[curve][line["step"]].append(line[name])
    return {
        curve: [(step, sum(figures) / len(figures)) for step, figures in sorted(by_step.items())]
        for curve, by_step in sorted(values.items())
    }


def grid(tiles: Tensor) -> Tensor:
    """uint8 (classes, images, C, H, W) as one picture (C, H, W), one class per row, with gaps of one pixel."""
    padded = torch.nn.functional.pad(tiles, (0, 1, 0, 1), value=255)
    classes, images, channels, height, width = padded.shape
    return padded.permute(2, 0, 3, 1, 4).reshape(channels, classes * height, images * width)


def _rows_of_tiles(tiles: Tensor, titles: Sequence[str]) -> str:
    """A row of images for each class of uint8 (classes, images, C, H, W), with its title."""
    width_px = tiles.shape[1] * TILE_PX
    rows = "".join(
        f"<tr><th>{html.escape(title)}</th>"
        f"<td>{_image(f'synthetic images of {html.escape(title)}', grid(row[None]), width_px)}</td></tr>"
        for title, row in zip(titles, tiles, strict=True)
    )
    return f'<table class="tiles">{rows}</table>'


def _image(title: str, picture: Tensor, width_px: int) -> str:
    """An <img> of uint8 (C, H, W), `width_px` wide if the page has room; an enlarged one keeps the edges of pixels."""
    data = base64.b64encode(encode_image(picture, "png")).decode()
    style = f"width:{width_px}px;image-rendering:{'pixelated' if picture.shape[2] < width_px else 'auto'}"
    return f'<img alt="{title}" src="data:image/png;base64,{data}" style="{style}">'


def _confusion(matrix: Sequence[Sequence[int]], titles: Sequence[str]) -> str:
    counts = np.array(matrix, dtype=np.float64)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    if len(matrix) > MAX_TABLE_CLASSES:
        picture = torch.from_numpy(255 - np.rint(255 * shares).astype(np.uint8))[None]
        return _image("confusion matrix", picture, PAGE_PX)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    rows = "".join(
        f"<tr><th>{html.escape(titles[i])}</th>"
        + "".join(
            f'<td style="background:rgba(37,99,235,{share * 0.6:.2f})">{count}</td>'
            for count, share in zip(row, shares[i], strict=True)
        )
        + "</tr>"
        for i, row in enumerate(matrix)
    )
    return f'<table class="matrix"><tr><th></th>{head}</tr>{rows}</table>'
