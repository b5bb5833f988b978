"""Remove the shards and checkpoints of one run."""

import shutil

from pipeline.distillation.state import remove_state
from pipeline.session import Session
from stages.command import run_stage


def main(session: Session, round_index: int | None = None) -> None:
    """Remove both output folders of the run; with `round_index`, only the outputs of that round."""
    config = session.config
    if not session.context.is_main_process:
        return
    if round_index is None:
        outputs = [config.shards, config.checkpoints]
    else:
        student, evaluation = config.student_path(round_index), config.evaluation_path(round_index)
        remove_state(student)
        pages = [config.checkpoints / name for name in ("report.html", "grid.png")]
        outputs = [config.round_folder(round_index), student, evaluation, evaluation.with_suffix(".csv"), *pages]
    for path in outputs:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        print(f"clean: removed {path}")


if __name__ == "__main__":
    run_stage(main, __doc__ or "")
