"""Evaluate a student beside its teacher on real test images."""

from pipeline.data.image_sets import load_images
from pipeline.evaluation.evaluate import check_evaluation, evaluate, evaluation_csv
from pipeline.identity import evaluation_identity
from pipeline.runtime.config import to_plain
from pipeline.runtime.files import is_whole, read_json, write_json, write_text
from pipeline.runtime.fingerprint import fingerprint, versions
from pipeline.runtime.hardware import device_name
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.runtime.text import printable
from pipeline.session import Session, load_student, student_round


def main(session: Session, round_index: int | None = None) -> None:
    """Write `eval-R.json` and `eval-R.csv` of the student of round R, by default of the last round with a student."""
    config = session.config
    if not session.context.is_main_process:
        return
    round_index = student_round(config, round_index)
    identity = evaluation_identity(config, round_index)
    path = config.evaluation_path(round_index)
    table = path.with_suffix(".csv")
    is_complete = is_whole(path) and table.exists()
    if is_complete and read_json(path).get("fingerprint") == fingerprint(identity):  # else made again, in seconds
        print(f"evaluate: {path} is up to date; {printable(read_json(path, check_evaluation)['line'])}")
        return
    images = load_images(config.data, "test", config.images, config.class_labels)
    student = load_student(config, round_index).freeze().to(session.context.device)
    progress = Progress(stage="evaluate", total=len(images.labels), unit="images", round_index=round_index)
    with open_recorder(config.metrics_path(), progress, session.context, session.sinks) as recorder:
        report = evaluate(student, session.teacher, images, config.evaluation, recorder.advance)
        num_steps = config.distill_steps(round_index).stop
        recorder.log(report.num_images - 1, report.row(), sink_step=num_steps)
    session.sinks.figures(report.row())
    write_text(table, evaluation_csv(config.name, round_index, report))
    head = {"round": round_index, "fingerprint": fingerprint(identity), "identity": identity}
    facts = {"class_titles": config.class_titles, **vars(report), "line": report.line()}
    facts |= {"device": device_name(session.context.device), "versions": versions(), "config": to_plain(config)}
    write_json(path, {**head, **facts})
    print(f"evaluate: {report.line()}")
