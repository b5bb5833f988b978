"""The report: one page about a run, of whatever it has left so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import sections
from pipeline.report.figures import headline, main_figures, metric_rows, pair_rows, round_table, time_table
from pipeline.report.page import render_page
from pipeline.report.record import RunRecord


def render_report(record: RunRecord) -> str:
    """The HTML page of a run."""
    evaluated = record.evaluated
    evaluation = evaluated.evaluation if evaluated else None
    diversity = record.diversity and sections.diversity_section(record.diversity, record.class_titles)
    return render_page(
        "report.html",
        record=record,
        headline=headline(evaluation) if evaluation else _without_evaluation(record),
        notes=_notes(record),
        evaluation=evaluation,
        evaluated_round=evaluated and evaluated.student_round,
        main_figures=evaluation and main_figures(evaluation),
        metrics=metric_rows(evaluation) if evaluation else [],
        pair=pair_rows(evaluation) if evaluation else [],
        marking=sections.marking_networks(image for image, _ in record.shown),
        image_rows=sections.image_rows(record),
        rounds=round_table(record.rounds),
        curves=sections.curve_charts(record),
        scores=sections.score_charts(record.images, record.class_titles),
        diversity=diversity,
        accuracy=evaluation and sections.accuracy_section(evaluation),
        calibration=evaluation and sections.calibration_chart(evaluation),
        confusion=evaluation and sections.confusion_section(evaluation),
        times=time_table(record),
        facts=_facts(record, evaluation),
    )


def _facts(record: RunRecord, evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """What repeats the run, and where and with what its outputs were made, as far as they say."""
    manifests = [round_record.manifest for round_record in record.rounds if round_record.manifest]
    origins = {**_origin("images packed", manifests), **_origin("evaluated", [evaluation] if evaluation else [])}
    return {"command": record.facts["command"], **origins, **record.facts}


def _origin(verb: str, outputs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The devices and the versions that outputs state; those of earlier versions state less."""
    devices = dict.fromkeys(str(output["device"]) for output in outputs if "device" in output)
    stated = [output.get("versions") for output in outputs]
    versions = dict.fromkeys(versions_text(versions) for versions in stated if isinstance(versions, dict))
    facts = {f"{verb} on": "; ".join(devices), f"{verb} with": "; ".join(versions)}
    return {name: fact for name, fact in facts.items() if fact}


def versions_text(versions: Mapping[str, str]) -> str:
    """`python 3.12, torch 2.11`."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _without_evaluation(record: RunRecord) -> str:
    """What exists, and the command that makes what is missing."""
    if any(round_record.student_round is not None for round_record in record.rounds):
        return "The student is not evaluated yet: run the stage `evaluate`."
    if record.num_images:
        return f"{record.num_images:,} synthetic images, and no student yet: run the stage `distill`, then `evaluate`."
    return "No round of images is complete yet: run the stage `synthesize`."


def _notes(record: RunRecord) -> list[str]:
    """What the reader should know before the figures."""
    evaluated = record.evaluated
    if not evaluated or record.rounds[-1] is evaluated:
        return []
    return [f"The figures are those of {evaluated.title}; the last one is {record.rounds[-1].title}."]
