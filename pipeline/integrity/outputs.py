"""The state of the networks, evaluations, figures and pictures of a run."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.distillation.state import read_state
from pipeline.evaluation.evaluate import EvalReport, check_evaluation, evaluation_csv
from pipeline.identity import existing_evaluation, is_student_finished, require_trained_teacher, student_identity
from pipeline.integrity.files import FileState, require_whole_lines, require_whole_picture, state_of
from pipeline.models.checkpoint import read_description
from pipeline.run import RunConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import read_json, require_sealed, sha256_of
from pipeline.runtime.fingerprint import require_same_identity
from pipeline.runtime.form import check_form

Check = Callable[[RunConfig, Path, re.Match[str]], FileState]
EXPORT_FACTS = "export.json"


def check_outputs(config: RunConfig) -> Iterator[FileState]:
    """The state of every file in the folder of the networks that a stage wrote; others are left out."""
    for path in sorted(config.checkpoints.rglob("*")):
        name = path.relative_to(config.checkpoints).as_posix()
        for pattern, check in CHECKS.items():
            if path.is_file() and (match := re.fullmatch(pattern, name)):
                yield check(config, path, match)
                break


def _teacher(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(path, read_description, partial(require_trained_teacher, config))


def _student(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(path, read_description, partial(is_student_finished, config, _round(config, path, match)))


def _state(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    if match["round"] is None:  # of the teacher, whose identity has the content of real images
        return state_of(path, read_state)
    return state_of(path, read_state, partial(_require_own_state, config, path, match))


def _require_own_state(config: RunConfig, path: Path, match: re.Match[str]) -> None:
    existing = json.loads(read_state(path)["identity"])
    require_same_identity(str(path), existing, student_identity(config, _round(config, path, match)))


def _evaluation(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(
        path, partial(read_json, check=check_evaluation), partial(_require_own_evaluation, config, path, match)
    )


def _require_own_evaluation(config: RunConfig, path: Path, match: re.Match[str]) -> None:
    if existing_evaluation(config, _round(config, path, match)) is None:
        raise ConfigError(f"{path} is of another student or configuration; run the stage `evaluate` again")


def _table(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(path, _require_rows_of_evaluation)


def _require_rows_of_evaluation(path: Path) -> None:
    """Raise ValueError unless a table holds the figures of the evaluation beside it."""
    source = path.with_suffix(".json")
    if source.exists():
        evaluation = read_json(source, _check_rows)
        text = evaluation_csv(evaluation["config"]["name"], evaluation["round"], EvalReport.of(evaluation))
        if path.read_bytes() != text.encode():
            raise ValueError(f"{path} is damaged: it has not the figures of {source}; remove it and evaluate again")


def _check_rows(evaluation: Any) -> None:
    """Raise ValueError unless an evaluation states what its table holds."""
    check_evaluation(evaluation)
    check_form(evaluation, {"round": int, "config": {"name": str}})


def _export_facts(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(path, _require_stated_files)


def _require_stated_files(path: Path) -> None:
    stated = read_json(path, partial(check_form, form={"files": {}}))["files"]
    if missing := [other for name in stated if not (other := path.parent / name).exists()]:
        raise ValueError(f"{missing[0]} is missing, which {path} states; run the stage `export` again")


def _exported(config: RunConfig, path: Path, match: re.Match[str]) -> FileState:
    return state_of(path, _require_stated_bytes)


def _require_stated_bytes(path: Path) -> None:
    facts = path.with_name(EXPORT_FACTS)
    if not facts.exists():
        raise ValueError(f"{facts} is missing, which states the SHA-256 of {path}; run the stage `export` again")
    stated = read_json(facts, partial(check_form, form={"files": {path.name: {"sha256": str}}}))
    if stated["files"][path.name]["sha256"] != sha256_of(path):
        raise ValueError(f"{path} is damaged: {EXPORT_FACTS} states another SHA-256; run the stage `export` again")


def _with(require_whole: Callable[[Path], object]) -> Check:
    """A check of files that are of the run whatever the configuration is."""
    return lambda config, path, match: state_of(path, require_whole)


def _round(config: RunConfig, path: Path, match: re.Match[str]) -> int:
    """The round in the name of a file; raises ConfigError when the run has not so many."""
    round_index = int(match["round"])
    if round_index >= config.num_rounds:
        raise ConfigError(f"{path} is of round {round_index}, this configuration has {config.num_rounds}")
    return round_index


# The files that stages write, by their name in the folder.
CHECKS: dict[str, Check] = {
    r"teacher\.safetensors": _teacher,
    r"student-(?P<round>\d+)\.safetensors": _student,
    r"(teacher|student-(?P<round>\d+))\.state": _state,
    r"eval-(?P<round>\d+)\.json": _evaluation,
    r"eval-\d+\.csv": _table,
    r"(teacher|estimate|quality-\w+)\.json": _with(require_sealed),
    r"export/export\.json": _export_facts,
    r"(report\.html|export/README\.md)": _with(require_sealed),
    r"export/student\.\w+": _exported,
    r"metrics(\.\d+)?\.jsonl": _with(require_whole_lines),
    r"[\w-]+\.png": _with(require_whole_picture),
}
