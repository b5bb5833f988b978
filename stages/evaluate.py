"""Evaluate a student beside its teacher on real test images."""

import csv
import io
from dataclasses import asdict

from pipeline.data.image_sets import load_images
from pipeline.evaluation.evaluate import EvalReport, evaluate
from pipeline.identity import evaluation_identity, require_student
from pipeline.runtime.files import read_json, write_json, write_text
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.recorder import open_recorder
from pipeline.session import Session, last_student, load_student
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Write `eval-R.json` and `eval-R.csv` of the student of round R, by default of the last one there is."""
    config = session.config
    if not session.world.is_leader:
        return
    if round_index is None:
        round_index = last_student(config)
    require_student(config, round_index)
    identity = evaluation_identity(config, round_index)
    path, own = config.evaluation_path(round_index), fingerprint(identity)
    if path.exists() and (done := read_json(path)).get("fingerprint") == own:
        print(f"evaluate: {path} is up to date; {done['line']}")
        return
    images = load_images(config.data, "test", config.images)
    student = load_student(config, round_index).freeze().to(session.world.device)
    with open_recorder(
        config.metrics_path(), "evaluate", total=len(images.labels), unit="images", round_index=round_index
    ) as recorder:
        report = evaluate(
            student,
            session.teacher,
            images,
            config.images.num_classes,
            config.evaluation,
            session.world.device,
            recorder.advance,
        )
        recorder.log(report.num_compared - 1, report.row())
    write_text(path.with_suffix(".csv"), _csv(config.name, round_index, report))
    write_json(
        path, {"round": round_index, "fingerprint": own, "identity": identity, **asdict(report), "line": report.line()}
    )
    print(f"evaluate: {report.line()}")


def _csv(name: str, round_index: int, report: EvalReport) -> str:
    row = {"run": name, "round": round_index, **report.row()}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, row)
    writer.writeheader()
    writer.writerow(row)
    return buffer.getvalue()


if __name__ == "__main__":
    run_stage(main, __doc__ or "", exclusive=False)
