"""Evaluate a student beside its teacher on real test images."""

import csv
import io
from dataclasses import asdict
from pathlib import Path

from pipeline.config import fingerprint
from pipeline.data import content_hash, load_images
from pipeline.evaluate import EvalReport, evaluate
from pipeline.files import read_json, write_json, write_text
from pipeline.models import load_frozen
from pipeline.recorder import open_recorder
from pipeline.run import RunConfig, check_student, evaluation_identity, load_student
from pipeline.world import World
from stages.command import run_stage


def main(config: RunConfig, world: World, round_index: int | None = None) -> None:
    """Write `eval-R.json` and `eval-R.csv` of the student of round R, by default of the last one there is."""
    if not world.is_leader:
        return
    if round_index is None:
        round_index = last_student(config)
    check_student(config, round_index)
    images = load_images(config.data.test, "test", Path(config.data.folder), config.images)
    identity = evaluation_identity(config, round_index, content_hash(images))
    path, own = config.evaluation_path(round_index), fingerprint(identity)
    if path.exists() and (done := read_json(path)).get("fingerprint") == own:
        print(f"evaluate: {path} is up to date; {done['line']}")
        return
    teacher = load_frozen(config.teacher_model, config.images, world.device)
    student = load_student(config, round_index, teacher).freeze().to(world.device)
    with open_recorder(
        config.metrics_path(), "evaluate", total=len(images.labels), unit="images", round_index=round_index
    ) as recorder:
        report = evaluate(
            student, teacher, images, config.images.num_classes, config.evaluation, world.device, recorder.advance
        )
    write_text(path.with_suffix(".csv"), _csv(config.name, round_index, report))
    write_json(
        path, {"round": round_index, "fingerprint": own, "identity": identity, **asdict(report), "line": report.line()}
    )
    print(f"evaluate: {report.line()}")


def last_student(config: RunConfig) -> int:
    """The last round with a student; the last round of all when there is none yet."""
    rounds = [r for r in range(config.synthesis.rounds) if config.student_path(r).exists()]
    return rounds[-1] if rounds else config.synthesis.rounds - 1


def _csv(name: str, round_index: int, report: EvalReport) -> str:
    row = {"run": name, "round": round_index, **report.row()}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, row)
    writer.writeheader()
    writer.writerow(row)
    return buffer.getvalue()


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
