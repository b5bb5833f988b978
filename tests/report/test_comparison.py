"""The comparison of runs: what differs, figures, curves, and messages for what cannot be compared."""

import csv
import json
import shutil

import pytest
from pages import Page
from tiny_run import copy_run, run_in_process

from pipeline.report.comparison import comparison_lines, different_keys, read_summary
from pipeline.run import load_run
from stages import distill, evaluate
from stages.command_line import run


@pytest.fixture(scope="module")
def two_runs(finished, tmp_path_factory):
    """A folder with the tiny run, and one of another learning rate whose metrics have no teacher."""
    folder = tmp_path_factory.mktemp("two")
    copy_run(finished, folder)
    config = load_run(copy_run(finished, folder / "other", distill__lr=0.05))
    config.student_path(0).unlink()
    config.metrics_path().unlink()
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    for name in ("checkpoints", "shards"):
        shutil.move(folder / "other" / name / "tiny", folder / name / "faster")
    shutil.rmtree(folder / "other")
    return folder


def summaries(folder, *names):
    return [read_summary(name, folder / "checkpoints") for name in names]


def error_of_compare(capsys, *arguments: str) -> str:
    assert run(["compare", *arguments]) == 2
    return capsys.readouterr().err


def test_table_has_the_keys_that_differ_and_the_figures(two_runs, capsys):
    assert run(["compare", "tiny", "faster", "--checkpoints-dir", str(two_runs / "checkpoints")]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["tiny"] == ["faster"]
    assert rows["distill.lr"] == ["0.1", "0.05"]
    evaluation = json.loads((two_runs / "checkpoints/tiny/eval-0.json").read_text())
    assert rows["student_top1"][:2] == [f"{evaluation['student']['top1']:.2%}".removesuffix("%"), "%"]
    assert rows["student_parameters"] == ["1,384", "1,384"]
    assert rows["images"] == ["60", "60"]
    assert rows["synthesize_s"][2] == "-"
    assert "name" not in rows
    assert "synthesis.num_images" not in rows


def test_csv_has_a_line_for_each_run(two_runs, tmp_path):
    assert (
        run(
            ["compare", "tiny", "faster", "--checkpoints-dir", str(two_runs / "checkpoints"), "--output", str(tmp_path)]
        )
        == 0
    )
    first, second = csv.DictReader((tmp_path / "compare.csv").read_text().splitlines())
    assert (first["run"], second["run"]) == ("tiny", "faster")
    assert (first["distill.lr"], second["distill.lr"]) == ("0.1", "0.05")
    evaluation = json.loads((two_runs / "checkpoints/faster/eval-0.json").read_text())
    assert float(second["student_nll"]) == evaluation["student"]["nll"]
    assert second["synthesize_s"] == ""


def test_page_lays_the_curves_of_the_runs_over_each_other(two_runs, tmp_path):
    assert (
        run(
            ["compare", "tiny", "faster", "--checkpoints-dir", str(two_runs / "checkpoints"), "--output", str(tmp_path)]
        )
        == 0
    )
    page = Page((tmp_path / "compare.html").read_text())
    caption = next(text for text in page.texts["caption"] if text.startswith("Keys whose values differ"))
    assert page.rows(caption)[1:] == [["distill.lr", "0.1", "0.05"]]
    labels = [text for text in page.texts["text"] if text in ("tiny", "faster")]
    assert labels.count("faster") == 1  # of distillation alone
    assert labels.count("tiny") == len(page.texts["figcaption"]) == 4


def test_runs_named_by_paths_and_configs_with_other_keys(two_runs):
    path = str(two_runs / "checkpoints" / "tiny")
    (named,) = summaries(two_runs, "tiny")
    by_path = read_summary(path, two_runs / "elsewhere")
    assert (by_path.config, by_path.figures) == (named.config, named.figures)
    assert by_path.config["synthesis.inversion.phases.0.steps"] == 4
    other = read_summary("tiny", two_runs / "checkpoints")
    assert different_keys([named, other]) == []
    assert comparison_lines([named, other])[2].startswith("round")


def test_unknown_run_is_named_with_those_that_exist(two_runs, capsys):
    message = error_of_compare(capsys, "tiny", "fastr", "--checkpoints-dir", str(two_runs / "checkpoints"))
    assert "error: there is no run fastr: no folder" in message
    assert "did you mean faster? (runs: faster, tiny)" in message


def test_one_run_cannot_be_compared(two_runs, capsys):
    message = error_of_compare(capsys, "tiny", "tiny", "--checkpoints-dir", str(two_runs / "checkpoints"))
    assert "name at least two different runs" in message


def test_run_without_evaluation_is_compared_by_its_images(two_runs, tmp_path, capsys):
    shutil.copytree(two_runs, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints/faster/eval-0.json").unlink()
    assert run(["compare", "tiny", "faster", "--checkpoints-dir", str(tmp_path / "checkpoints")]) == 0
    out = capsys.readouterr().out
    assert "faster: not evaluated: run the stage `evaluate`" in out
    row = next(line for line in out.splitlines() if line.startswith("student_top1 "))
    assert row.split()[-1] == "-"
    shutil.rmtree(tmp_path / "shards/faster")
    message = error_of_compare(capsys, "tiny", "faster", "--checkpoints-dir", str(tmp_path / "checkpoints"))
    assert "has no evaluation, and" in message


def test_evaluation_of_another_version_is_named(two_runs, tmp_path, capsys):
    shutil.copytree(two_runs, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints/faster/eval-0.json"
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in evaluation.items() if k != "config"}))
    (before,), (after,) = summaries(two_runs, "faster"), summaries(tmp_path, "faster")
    assert before.figures == after.figures  # the configuration is that beside the images
    path.write_text(json.dumps({"recovered": 0.9, "student": {}, "teacher": {}}))
    message = error_of_compare(capsys, "tiny", "faster", "--checkpoints-dir", str(tmp_path / "checkpoints"))
    assert f"another version wrote {path} (it has no accuracy_retention); run the stage `evaluate` again" in message
