"""Remove the shards and checkpoints of one run."""

import shutil
import warnings
from argparse import Namespace
from pathlib import Path

from pipeline.distillation.state import state_path
from pipeline.quality import quality_path
from pipeline.run import RunConfig
from pipeline.runtime.environment import is_rank_zero
from pipeline.runtime.files import temporary_path
from pipeline.synthesis.pictures import PREVIEW, evolution_name, grid_name, picture_path
from stages.stage import LOCK_NAME, lock_run, read_config, show_warning


def main(arguments: Namespace) -> None:
    """Remove the outputs of a run, or print what would be removed; needs no device and reads no output."""
    warnings.showwarning = show_warning
    config = read_config(arguments)
    if not is_rank_zero():
        return
    if arguments.dry_run:
        outputs = _existing_outputs(config, arguments.round)
        print(*([f"clean: would remove {path}" for path in outputs] or ["clean: nothing to remove"]), sep="\n")
        return
    with lock_run(config):
        remove(config, arguments.round)


def remove(config: RunConfig, round_index: int | None = None) -> None:
    """Remove both output folders of the run; with `round_index`, only the outputs of that round."""
    outputs = _existing_outputs(config, round_index)
    for path in outputs:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:  # it may name a file alone, without its folder
            raise OSError(error.errno, f"cannot remove {path}: {error.strerror}") from error
        print(f"clean: removed {path}")
    if not outputs:
        print("clean: nothing to remove")
    if config.object_store is not None:
        print(f"clean: copies in {config.object_store} stay, and the next command gets them; remove them yourself")


def _existing_outputs(config: RunConfig, round_index: int | None) -> list[Path]:
    """The folders of the run that hold more than a lock, or the outputs of one round and the pages of the run."""
    if round_index is None:
        folders = dict.fromkeys((config.shards, config.checkpoints))  # may be equal
        return [folder for folder in folders if any(path.name != LOCK_NAME for path in folder.glob("*"))]
    student, evaluation = config.student_path(round_index), config.evaluation_path(round_index)
    pages = [config.checkpoints / name for name in ("report.html", "export")]
    pictures = (PREVIEW, evolution_name(round_index), grid_name(round_index))
    pages += [picture_path(config.checkpoints, name) for name in pictures]
    evaluations = [evaluation, evaluation.with_suffix(".csv"), quality_path(config, round_index)]
    files = [student, state_path(student), temporary_path(state_path(student)), *evaluations, *pages]
    return [path for path in (config.round_folder(round_index), *files) if path.exists()]
