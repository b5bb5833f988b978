"""Damaged files of a run that its pages are made of: named with the fix, or left out with a warning; never a trace."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import copy_run, run_command

from pipeline.data.parts import ShardError
from pipeline.data.samples import read_metadata
from pipeline.data.shards import find_damage
from pipeline.evaluation.evaluate import check_evaluation
from pipeline.identity import existing_evaluation
from pipeline.pool import Pool
from pipeline.report.record import RunRecord, read_record
from pipeline.report.report import render_report
from pipeline.report.summary import read_summary
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import read_metrics
from stages import evaluate, export, report

# Values of other types and sizes, as damage or another program leaves them.
SHOWN_MUTANTS = 5
OTHERS = (None, True, -1, 0, 1e400, "x", [], {}, [[]], [None, "x"], {"data": []})


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in plain data, the first item of each list for all of its items."""
    yield from [path] * bool(path)
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from keys(inner, (*path, key))


def mutants(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of plain data, each with one value replaced or left out."""
    for path in keys(value):
        for other in (*OTHERS, ...):
            mutant = node = deepcopy(value)
            for key in path[:-1]:
                node = node[key]
            if other is ...:
                del node[path[-1]]
            else:
                node[path[-1]] = other
            yield f"{path} {other}", mutant


def record_of(config) -> RunRecord:
    facts = {"command": "", "this page written on": "", "this page written with": ""}
    return read_record(config, Pool(config, DistributedContext()), None, facts)


def without(evaluation: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in evaluation.items() if name not in names}


@pytest.mark.slow
def test_a_changed_evaluation_is_refused_or_can_be_shown(finished):
    config = load_run(finished / "tiny.yaml")
    record = record_of(config)
    evaluation, accepted = dict(record.evaluated.evaluation), []
    for name, mutant in mutants(without(evaluation, "identity", "config")):
        try:
            check_evaluation(mutant)
        except ValueError:
            continue
        accepted.append((name, {**mutant, "identity": evaluation["identity"]}))
    assert len(accepted) > SHOWN_MUTANTS
    for name, mutant in accepted[:: len(accepted) // SHOWN_MUTANTS]:
        rounds = [replace(record.rounds[0], evaluation=mutant)]
        assert "<!doctype html>" in render_report(replace(record, rounds=rounds)), name


@pytest.mark.parametrize("stage", [report, export])
@pytest.mark.parametrize("change", [{"student": {}}, {"student": 3}, {"identity": {}}, {"kl": None}])
def test_a_damaged_evaluation_is_named_with_the_fix(error_of, finished, tmp_path, stage, change):
    path = copy_run(finished, tmp_path)
    file = load_run(path).evaluation_path(0)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    message = error_of(stage, path)
    assert message.startswith(f"error: {file} is damaged (")
    assert message.endswith("; remove it and run the stage that writes it again\n")


def test_a_damaged_evaluation_is_not_called_up_to_date(error_of, finished, tmp_path, capsys):
    path = copy_run(finished, tmp_path)
    file = load_run(path).evaluation_path(0)
    evaluation = json.loads(file.read_text())
    file.write_text(json.dumps(without(evaluation, "line")))
    assert f"{file} is damaged (line is missing)" in error_of(evaluate, path)


@pytest.mark.parametrize("content", ["[]", '{"teacher_s": "x"}', '{"shard_bytes": NaN}', "[" * 100_000, "\x00"])
def test_a_damaged_estimate_is_named(error_of, finished, tmp_path, content):
    path = copy_run(finished, tmp_path)
    file = load_run(path).estimate_path
    file.write_text(content)
    assert error_of(report, path).startswith(f"error: {file} is damaged (")


LINES = """\
3
[]
{"stage": "distill"}
{"stage": 3, "step": 1, "elapsed_s": 1}
{"stage": "synthesize", "round": "x", "step": 1, "elapsed_s": 1}
{"stage": "distill", "step": 1.5, "elapsed_s": 1}
{"stage": "distill", "step": 1, "elapsed_s": []}
{"stage": "distill", "step": 1, "elapsed_s": 1, "loss": 1e999}
"""
as_warning = pytest.mark.filterwarnings("default:.*left out:UserWarning")


@as_warning
def test_lines_that_no_stage_has_written_are_left_out_with_a_warning(finished, tmp_path, monkeypatch, capsys):
    path = copy_run(finished, tmp_path)
    file = load_run(path).metrics_path()
    before = read_metrics(file)
    with open(file, "ab") as metrics:
        metrics.write(LINES.encode() + b'{"stage": "disti\n\xff\xfe\n' + b"[" * 100_000)
    assert run_command(monkeypatch, report.main, path) == 0
    assert f"warning: {file}: 8 damaged lines are left out; curves" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="left out"):
        assert read_metrics(file) == before


def test_text_of_a_changed_evaluation_is_no_markup_and_no_command(finished, tmp_path, monkeypatch, capsys):
    path, script = copy_run(finished, tmp_path), "<script>$x$</script>"
    config = load_run(path)
    file = config.evaluation_path(0)
    evaluation = json.loads(file.read_text())
    evaluation |= {"class_titles": [f'"{script}'] * 10, "device": script, "versions": {script: script}}
    file.write_text(json.dumps({**evaluation, "line": "\x1b[31mred"}))
    page = render_report(record_of(config))
    assert page.count("<script>") == 1  # our own
    assert page.count("&lt;script&gt;$x$&lt;/script&gt;") > 30
    assert run_command(monkeypatch, evaluate.main, path) == 0
    assert r"is up to date; \x1b[31mred" in capsys.readouterr().out
    file.write_text(json.dumps({**evaluation, "class_titles": ["\x1b", *evaluation["class_titles"][1:]]}))
    with pytest.raises(ValueError, match=rf"{file} is damaged \(class_titles has control characters\)"):
        existing_evaluation(config, 0)


def test_a_line_without_a_round_is_of_the_first(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    line = {"stage": "synthesize", "step": 1, "elapsed_s": 1, "classification": 1.0}
    with open(load_run(path).metrics_path(), "a") as metrics:
        metrics.write(json.dumps(line) + "\n" + json.dumps(line | {"round": -1}) + "\n")
    assert run_command(monkeypatch, report.main, path) == 0


@as_warning
def test_damaged_pictures_are_left_out_with_a_warning(finished, tmp_path, monkeypatch, capsys):
    path = copy_run(finished, tmp_path)
    monkeypatch.setattr("pipeline.report.record.next_set", lambda config, round_index: True)
    names = ["evolution-0.png", "preview.png"]
    for name in names:
        (load_run(path).checkpoints / name).write_bytes(b"no picture")
    assert run_command(monkeypatch, report.main, path) == 0
    message = capsys.readouterr().err
    assert all(f"{name} is not a readable image (no known format); it is left out" in message for name in names)


@pytest.mark.parametrize("change", [(b'_top1"', b'_topx"'), (b'_probability": ', b'_probability":x')])
def test_damaged_metadata_of_an_image_is_named(finished, tmp_path, change):
    config = load_run(copy_run(finished, tmp_path))
    shard = config.round_folder(0) / "train" / "0003-00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(*change))
    assert find_damage(config.round_folder(0))
    with pytest.raises(ShardError, match=r"0003-00000\.tar is damaged \("):
        list(read_metadata(shard, 10))


@pytest.mark.parametrize(
    "change", [{"student": 3}, {"accuracy_retention": "x"}, {"config": {"name": "x"}}, {"kl": 1e400}]
)
def test_a_damaged_evaluation_of_a_compared_run_is_named(finished, tmp_path, change):
    config = load_run(copy_run(finished, tmp_path))
    file = config.evaluation_path(0)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"^{file} is damaged \("):
        read_summary(config.name, Path(config.checkpoints_dir))


OTHER_SHARDS = b"{name: a, shards_dir: b, checkpoints_dir: c, distill: {shards: 3}}"


@pytest.mark.parametrize(
    "content", [b"name: [", b"- x", b"name: tiny\n", OTHER_SHARDS, b"\xff\xfe\x00", b"a: {b: " * 5000]
)
def test_a_damaged_config_of_a_compared_run_is_named(finished, tmp_path, content):
    config = load_run(copy_run(finished, tmp_path))
    config.evaluation_path(0).unlink()
    file = config.round_folder(0) / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{file} is damaged \(.*; run the stage `evaluate`"):
        read_summary(config.name, Path(config.checkpoints_dir))
