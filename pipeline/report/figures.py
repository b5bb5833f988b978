"""The figures of a run as rows of tables: metrics, rounds, times."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.record import RoundRecord, RunRecord, evenly_spaced
from pipeline.runtime.quantities import duration, size
from pipeline.runtime.recorder import seconds_of_stages

STAGES = ("teacher", "synthesize", "distill", "evaluate")
# Rounds in the table, evenly spaced.
SHOWN_ROUNDS = 20
Rows = list[tuple[str, ...]]


def percent(share: float | None) -> str:
    """A share as a percentage with two decimals."""
    return "-" if share is None else f"{share:.2%}".replace("%", " %")


def headline(evaluation: Mapping[str, Any]) -> str:
    """What the student reaches beside its teacher: accuracy, size, speed."""
    student, teacher = evaluation["student"], evaluation["teacher"]
    parameters = _ratio(teacher["parameters"] / student["parameters"], "fewer parameters", "more parameters")
    speed = _ratio(teacher["forward_ms"] / student["forward_ms"], "faster", "slower")
    return (
        f"The student classifies {percent(student['top1'])} of {evaluation['num_images']:,} real images correctly, its "
        f"teacher {percent(teacher['top1'])}: an accuracy retention of {percent(evaluation['accuracy_retention'])}, "
        f"with {parameters or 'as many parameters'}, {speed or 'as fast'}."
    )


def _ratio(ratio: float, fewer: str, more: str) -> str:
    """`3.9 times fewer parameters`; empty for a ratio within 5 % of 1, which timing alone can make."""
    if abs(ratio - 1) < 0.05:
        return ""
    return f"{ratio:.1f} times {fewer}" if ratio > 1 else f"{1 / ratio:.1f} times {more}"


def metric_rows(evaluation: Mapping[str, Any]) -> Rows:
    """Name, figure of the student, figure of the teacher."""
    shown = {
        "top-1": ("top1", percent),
        "top-5": ("top5", percent),
        "negative log-likelihood, nats": ("nll", "{:.4f}".format),
        "calibration error": ("calibration_error", "{:.4f}".format),
        "parameters": ("parameters", "{:,}".format),
        f"forward pass of {evaluation['timed_batch']} images, ms": ("forward_ms", "{:.2f}".format),
    }
    return [
        (name, *(to_text(evaluation[network][key]) for network in ("student", "teacher")))
        for name, (key, to_text) in shown.items()
    ]


def pair_rows(evaluation: Mapping[str, Any]) -> Rows:
    """Name and figure of the student beside its teacher."""
    return [
        ("accuracy retention: top-1 of the student / teacher", percent(evaluation["accuracy_retention"])),
        ("agreement: equal predictions", percent(evaluation["agreement"])),
        ("KL(teacher || student), nats", f"{evaluation['kl']:.4f}"),
    ]


def round_table(rounds: Sequence[RoundRecord]) -> tuple[tuple[str, ...], Rows]:
    """Header and rows: images, scores, top-1 of the student and fingerprint of each round, or of some."""
    names = list(dict.fromkeys(name for one in rounds if one.manifest for name in one.manifest["scores"]))
    header = ("round", "images", *(name.replace("_", " ") for name in names), "student top-1", "fingerprint")
    rows = []
    for one in evenly_spaced(rounds, SHOWN_ROUNDS):
        manifest = one.manifest or {"num_images": 0, "scores": {}, "fingerprint": "no images"}
        scores = [percent(manifest["scores"].get(name)) for name in names]
        top1 = one.evaluation["student"]["top1"] if one.evaluation else None
        rows.append((str(one.index), f"{manifest['num_images']:,}", *scores, percent(top1), manifest["fingerprint"]))
    return header, rows


def time_table(record: RunRecord) -> tuple[tuple[str, ...], Rows]:
    """Header and rows: time of each stage, and that of all its processes, beside the estimate."""
    by_rank = [seconds_of_stages(lines) for lines in record.metrics]
    longest: dict[str, float] = defaultdict(float)
    for seconds in by_rank:
        for stage, value in seconds.items():
            longest[stage] = max(longest[stage], value)
    total, estimate = sum(longest.values()), record.estimate or {}
    rows: Rows = []
    for stage in (stage for stage in STAGES if stage in longest):
        ranks = [seconds[stage] for seconds in by_rank if stage in seconds]
        share = f"{longest[stage] / (total or 1):.0%}".replace("%", " %")
        row = (stage, duration(longest[stage]), share, duration(sum(ranks)))
        rows.append((*row, duration(estimate[f"{stage}_s"]) if estimate.get(f"{stage}_s") else "-"))
    stored = sum(size for one in record.rounds if one.manifest for s in one.manifest["shards"] for size in s["sizes"])
    if stored:
        rows.append(("images", size(stored), "", "", size(estimate["shard_bytes"]) if estimate else "-"))
    return ("stage", "measured", "share", "all processes", "estimated"), rows
