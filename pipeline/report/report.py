"""The report: one page about a run, of whatever it has left so far."""

from collections.abc import Mapping
from typing import Any

from pipeline.report import sections
from pipeline.report.figures import headline, metric_rows, pair_rows, round_table, time_table
from pipeline.report.page import render_page
from pipeline.report.record import RunRecord


def render_report(record: RunRecord) -> str:
    """The HTML page of a run."""
    evaluated = record.evaluated
    evaluation = evaluated.evaluation if evaluated else None
    diversity = record.diversity and sections.diversity_section(record.diversity, record.class_titles)
    calibration = evaluation and sections.calibration_chart(evaluation)
    return render_page(
        "report.html",
        record=record,
        headline=headline(evaluation) if evaluation else _without_evaluation(record),
        notes=_notes(record, calibration is not None),
        evaluation=evaluation,
        evaluated_round=evaluated and evaluated.index,
        metrics=metric_rows(evaluation) if evaluation else [],
        pair=pair_rows(evaluation) if evaluation else [],
        scorer=sections.scorer_of(record.images),
        image_rows=sections.image_rows(record),
        rounds=round_table(record.rounds),
        curves=sections.curve_charts(record),
        scores=sections.score_charts(record.images, record.class_titles),
        diversity=diversity,
        accuracy=evaluation and sections.accuracy_section(evaluation),
        calibration=calibration,
        confusion=evaluation and sections.confusion_section(evaluation),
        times=time_table(record),
        facts=_facts(record, evaluation),
    )


def _facts(record: RunRecord, evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """What repeats the run, and where and with what it was made."""
    facts = dict(record.facts)
    if evaluation and "device" in evaluation:
        facts["evaluated on"] = evaluation["device"]
    manifests = [one.manifest for one in record.rounds if one.manifest]
    if manifests:
        versions = manifests[-1]["versions"].items()
        facts["images made with"] = ", ".join(f"{name} {version}" for name, version in versions)
        facts["fingerprint of the images"] = manifests[-1]["fingerprint"]
    return facts


def _without_evaluation(record: RunRecord) -> str:
    """What exists, and the command that makes what is missing."""
    if any(one.has_student for one in record.rounds):
        return "The student is not evaluated yet: run the stage `evaluate`."
    if record.num_images:
        return f"{record.num_images:,} synthetic images, and no student yet: run the stage `distill`, then `evaluate`."
    return "No round of images is complete yet: the stage `synthesize` continues."


def _notes(record: RunRecord, has_calibration: bool) -> list[str]:
    """What the reader should know before the figures."""
    notes, evaluated = [], record.evaluated
    if evaluated and record.rounds[-1] is not evaluated:
        notes.append(f"The last round is {record.rounds[-1].index}; the figures are those of round {evaluated.index}.")
    if evaluated and not has_calibration:
        notes.append(
            "The evaluation has no calibration bins, since an earlier version made it: run the stage `evaluate` again."
        )
    return notes
