"""The sections of the report: what of a run is shown, and how."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import dot_chart, histogram_chart, line_chart, reliability_chart, scatter_chart
from pipeline.report.curves import Curve, curve_of, figure_names
from pipeline.report.diversity import COLLAPSED, Diversity
from pipeline.report.figures import percent
from pipeline.report.pictures import heat_map
from pipeline.report.record import RunRecord, StoredImage
from pipeline.runtime.ranges import evenly_spaced

# Charts with a row for each class, and matrices with numbers, have up to this many classes.
MAX_ROWS, MAX_TABLE_CLASSES = 40, 20
# Rounds with a curve, evenly spaced; the most frequent confusions and the lowest classes that are listed.
SHOWN_CURVES, LISTED = 6, 10
NETWORKS, SCORERS = ("student", "teacher"), ("teacher", "verifier")
STAGE_CURVES = {
    "synthesize": ("Inversion", "step of a batch"),
    "distill": ("Distillation", "step"),
    "teacher": ("Training of the teacher", "step"),
}


def image_rows(record: RunRecord) -> list[dict[str, Any]]:
    """A row for each shown class: its title and its pictures, each with a description and whether it is a miss."""
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    has_several_sets = len({image.set_title for image, _ in record.shown}) > 1
    for image, picture in record.shown:
        title = record.class_titles[image.label]
        description = f"{title}, image {image.key.partition('/')[2]}{_scores(image)}"
        if has_several_sets:
            description += f", {image.set_title}"
        rows[image.label].append({"picture": picture, "text": description, "is_miss": _is_miss(image)})
    return [
        {"title": record.class_titles[label], "images": images, "count": len(images)} for label, images in rows.items()
    ]


def _scores(image: StoredImage) -> str:
    """`: teacher 97.0 %, verifier 12.1 % (miss)`, the probabilities of the label, as far as there are any."""
    texts = []
    for network in SCORERS:
        probability, is_hit = (image.metadata.get(f"{network}_{name}") for name in ("probability", "top1"))
        if probability is not None:
            texts.append(f"{network} {percent(probability)} ({'hit' if is_hit else 'miss'})")
    return f": {', '.join(texts)}" if texts else ""


def marking_networks(images: Iterable[StoredImage]) -> str:
    """The network whose misses are marked, in words: the verifier, or the teacher of images that no verifier scored."""
    names = {_scorer(image) for image in images}
    return "verifier, or the teacher of images without its score," if len(names) > 1 else "".join(names)


def _scorer(image: StoredImage) -> str:
    return "verifier" if "verifier_top1" in image.metadata else "teacher"


def _is_miss(image: StoredImage) -> bool:
    return not image.metadata.get(f"{_scorer(image)}_top1", True)


def curve_charts(record: RunRecord) -> list[dict[str, Any]]:
    """A chart for each figure of each stage with metrics."""
    charts = []
    for stage, (title, x_label) in STAGE_CURVES.items():
        lines = [line for line in record.lines if line["stage"] == stage]
        for name in figure_names(lines):
            curves = _curves(lines, name, by_round=stage == "synthesize")
            ends = ", ".join(f"{curve.label} {curve.smooth[-1]:.4g}" for curve in curves)
            text = f"{title}: {name} over {x_label}, at first {curves[0].smooth[0]:.4g}, at the end {ends}"
            charts.append({"title": f"{title}: {name}", "svg": line_chart(f"{stage}-{name}", curves, x_label, text)})
    return charts


def _curves(lines: Sequence[Mapping[str, Any]], name: str, *, by_round: bool) -> list[Curve]:
    """The curve of a figure, or one for each round: the steps of distillation go on, those of inversion start again."""
    rounds = sorted({line.get("round", 0) for line in lines if name in line}) if by_round else []
    if len(rounds) < 2:
        return [curve_of(lines, name)]
    shown = evenly_spaced(rounds, SHOWN_CURVES)
    return [curve_of([line for line in lines if line.get("round", 0) == r], name, f"round {r}") for r in shown]


def score_charts(images: Sequence[StoredImage], titles: Sequence[str]) -> list[dict[str, Any]]:
    """Histograms of the probability of the label, and the share of hits by class, of the networks that scored.

    A network that scored some of the images is named with their number.
    """
    values, hits = {}, {}
    for name in SCORERS:
        scored = [image for image in images if f"{name}_probability" in image.metadata]
        if scored:
            label = name if len(scored) == len(images) else f"{name}, {len(scored):,} images"
            values[label] = [image.metadata[f"{name}_probability"] for image in scored]
            hits[label] = _hits_by_class(scored, f"{name}_top1", len(titles))
    if not values:
        return []
    means = ", ".join(f"{label} {percent(float(np.mean(numbers)))}" for label, numbers in values.items())
    text = f"Histogram of the probability of the label; mean: {means}"
    histogram = histogram_chart("probabilities", values, ("probability of the label", "% of images"), text)
    by_class = _by_class("hits", titles, hits, "share of hits", "Share of images with a hit")
    return [{"title": "Probability of the label", "svg": histogram}, {"title": "Hits by class", "svg": by_class}]


def _hits_by_class(scored: Sequence[StoredImage], key: str, num_classes: int) -> list[float | None]:
    counts, hits = np.zeros(num_classes), np.zeros(num_classes)
    for image in scored:
        counts[image.label] += 1
        hits[image.label] += image.metadata[key]
    return [hits[i] / counts[i] if counts[i] else None for i in range(num_classes)]


def _by_class(
    name: str, titles: Sequence[str], shares: Mapping[str, Sequence[float | None]], x_label: str, description: str
) -> Markup:
    """A row for each class, or, of many classes, a histogram of their shares; `x_label` says what these are."""
    if len(titles) > MAX_ROWS:
        known = {network: [share for share in values if share is not None] for network, values in shares.items()}
        text = f"{description}: histogram over {len(titles)} classes"
        return histogram_chart(name, known, (x_label, "% of classes"), text)
    listed = "; ".join(
        f"{title} {', '.join(f'{network} {percent(values[i])}' for network, values in shares.items())}"
        for i, title in enumerate(titles)
    )
    percents = {n: [None if share is None else 100 * share for share in values] for n, values in shares.items()}
    return dot_chart(name, titles, percents, f"{x_label}, %", f"{description}: {listed}")


def diversity_section(diversity: Diversity, titles: Sequence[str]) -> dict[str, Any]:
    """The chart of the mean distance of the images of each class, and the warning, empty if there is none."""
    shares: list[float | None] = [diversity.within.get(label) for label in range(len(titles))]
    collapsed = diversity.collapsed
    names = ", ".join(titles[label] for label in collapsed[:LISTED]) + ", ..." * (len(collapsed) > LISTED)
    warning = (
        f"The images of {len(collapsed)} of {len(diversity.within)} classes hardly differ from each other: their mean "
        f"distance is under {percent(COLLAPSED)} ({names}). A student learns little from copies: try a larger "
        "synthesis.inversion.jitter_px, more noise in init_noise, or rounds with the competition term."
    )
    description = "Mean distance of images of one class"
    chart = _by_class("diversity", titles, {"images of one class": shares}, "mean distance", description)
    figures = {"mean": percent(diversity.mean), "between": percent(diversity.between)}
    return {"chart": chart, "warning": warning if collapsed else "", "diversity": diversity, **figures}


def accuracy_section(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The chart of the top-1 of each class, and the classes in which the student loses most."""
    titles = evaluation["class_titles"]
    shares = {network: evaluation[network]["per_class_top1"] for network in NETWORKS}
    pairs = [(title, s, t) for title, s, t in zip(titles, *shares.values(), strict=True) if s is not None]
    if len(titles) <= MAX_ROWS:
        chart = _by_class("accuracy", titles, shares, "top-1", "Top-1 by class")
    else:
        student, teacher = (100 * np.array([pair[i] for pair in pairs]) for i in (1, 2))
        text = f"Top-1 of the student over that of the teacher, for {len(pairs)} classes"
        chart = scatter_chart("accuracy", teacher, student, ("teacher's top-1, %", "student's top-1, %"), text)
    rows = [(title, percent(s), percent(t), f"{100 * (s - t):+.1f}") for title, s, t in sorted(pairs, key=_difference)]
    return {"chart": chart, "rows": rows, "num_listed": LISTED}


def _difference(pair: tuple[str, float, float]) -> float:
    return pair[1] - pair[2]


def calibration_chart(evaluation: Mapping[str, Any]) -> Markup:
    """The reliability diagram."""
    bins = {network: evaluation[network]["calibration_bins"] for network in NETWORKS}
    errors = ", ".join(f"{network} {evaluation[network]['calibration_error']:.4f}" for network in NETWORKS)
    return reliability_chart("reliability", bins, f"Accuracy over confidence; calibration error: {errors}")


def confusion_section(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The student's confusion matrix, as rows of (count, share) or as a picture, and the most frequent confusions."""
    titles, counts = evaluation["class_titles"], np.array(evaluation["student"]["confusion"], dtype=np.int64)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(errors, axis=None, kind="stable")[::-1][:LISTED]
    pairs = [tuple(map(int, np.unravel_index(i, errors.shape))) for i in order]
    section = {"listed": [(titles[i], titles[j], f"{errors[i, j]:,}") for i, j in pairs if errors[i, j]]}
    if len(titles) > MAX_TABLE_CLASSES:
        return {**section, "picture": heat_map(shares), "rows": []}
    rows = [(titles[i], list(zip(counts[i].tolist(), shares[i].tolist(), strict=True))) for i in range(len(titles))]
    return {**section, "picture": None, "rows": rows}
