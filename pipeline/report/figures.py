"""The figures of a run as rows of tables: metrics, rounds, times."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.record import RoundRecord, RunRecord
from pipeline.runtime.quantities import duration, size
from pipeline.runtime.ranges import evenly_spaced
from pipeline.runtime.recorder import StageCost, costs_of_stages

STAGES = ("teacher", "synthesize", "distill", "evaluate")
# Rounds in the table, evenly spaced.
SHOWN_ROUNDS = 20
# Timing alone can make one of two equal networks this share faster.
TIMING_TOLERANCE = 0.05
Rows = list[tuple[str, ...]]


def percent(share: float | None) -> str:
    """A share as a percentage with two decimals."""
    return "-" if share is None else f"{share:.2%}".replace("%", " %")


def headline(evaluation: Mapping[str, Any]) -> str:
    """What the student reaches beside its teacher: accuracy, size, and speed.

    Of as many parameters, which are nearly always those of the same architecture, a speed would be chance.
    """
    student, teacher = evaluation["student"], evaluation["teacher"]
    speed = "" if student["parameters"] == teacher["parameters"] else f", {_speed_in_words(student, teacher)}"
    return (
        f"The student classifies {percent(student['top1'])} of {evaluation['num_images']:,} real images correctly, its "
        f"teacher {percent(teacher['top1'])}: an accuracy retention of {percent(evaluation['accuracy_retention'])}, "
        f"with {_size_in_words(student['parameters'], teacher['parameters'])} parameters{speed}."
    )


def _speed_in_words(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    speedup = teacher["forward_ms"] / student["forward_ms"]
    return "as fast" if abs(speedup - 1) < TIMING_TOLERANCE else _times(speedup, "faster", "slower")


def _size_in_words(student: int, teacher: int) -> str:
    """`as many`, `2.91 % fewer` or `3.9 times fewer`."""
    change = student / teacher - 1
    if change == 0:
        return "as many"
    if abs(change) < 0.1:
        return f"{percent(abs(change))} {'fewer' if change < 0 else 'more'}"
    return _times(teacher / student, "fewer", "more")


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more}" if ratio > 1 else f"{1 / ratio:.1f} times {less}"


def main_figures(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The figures that the page shows large, by their titles."""
    return {
        "student, top-1": percent(evaluation["student"]["top1"]),
        "teacher, top-1": percent(evaluation["teacher"]["top1"]),
        "student's parameters": f"{evaluation['student']['parameters']:,}",
        "agreement": percent(evaluation["agreement"]),
    }


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
    """Header and rows: images, scores, top-1 of the student and fingerprint of each round or set, or of some."""
    manifests = [record.manifest for record in rounds if record.manifest]
    names = list(dict.fromkeys(name for manifest in manifests for name in manifest["scores"]))
    header = ("set", "images", *(name.replace("_", " ") for name in names), "student top-1", "fingerprint")
    rows = []
    for record in evenly_spaced(rounds, SHOWN_ROUNDS):
        manifest = record.manifest or {"scores": {}, "fingerprint": "-"}
        num_images = f"{manifest['num_images']:,}" if record.manifest else "-"
        scores = [percent(manifest["scores"].get(name)) for name in names]
        top1 = record.evaluation["student"]["top1"] if record.evaluation else None
        rows.append((record.title, num_images, *scores, percent(top1), manifest["fingerprint"]))
    return header, rows


def time_table(record: RunRecord) -> tuple[tuple[str, ...], Rows]:
    """Header and rows: time and cost of each stage, beside the estimate."""
    by_rank = [costs_of_stages(lines) for lines in record.metrics]
    stages = {stage: [costs[stage] for costs in by_rank if stage in costs] for stage in STAGES}
    longest = {stage: max(cost.seconds for cost in costs) for stage, costs in stages.items() if costs}
    total, estimate = sum(longest.values()), record.estimate or {}
    rows: Rows = []
    for stage, seconds in longest.items():
        share = f"{seconds / (total or 1):.0%}".replace("%", " %")
        estimated = duration(estimate[f"{stage}_s"]) if estimate.get(f"{stage}_s") else "-"
        rows.append((stage, duration(seconds), estimated, share, *_cost_cells(stages[stage])))
    if peak := max((cost.peak_memory_bytes for costs in by_rank for cost in costs.values()), default=0):
        rows.append(_size_row("memory of a process", peak, estimate.get("peak_memory_bytes")))
    manifests = [round_record.manifest for round_record in record.rounds if round_record.manifest]
    if shards := [shard for manifest in manifests for shard in manifest["shards"]]:
        rows.append(_size_row("images", sum(sum(shard["sizes"]) for shard in shards), estimate.get("shard_bytes")))
    return ("stage", "measured", "estimated", "share", "processes", "cost", "peak memory"), rows


def _cost_cells(costs: Sequence[StageCost]) -> tuple[str, str, str]:
    """The number of processes of a stage, their core hours or GPU hours, and their peak memory in all."""
    units = {"core": sum(cost.core_s for cost in costs), "GPU": sum(cost.gpu_s for cost in costs)}
    texts = [f"{_hours(seconds)} {unit} hours" for unit, seconds in units.items() if seconds]
    peak = sum(cost.peak_memory_bytes for cost in costs)
    return str(len(costs)), " + ".join(texts) or "-", size(peak) if peak else "-"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}" if seconds >= 36 else "< 0.01"


def _size_row(name: str, measured: float, estimated: float | None) -> tuple[str, ...]:
    return (name, size(measured), size(estimated) if estimated else "-", "", "", "", "")
