"""The comparison of runs: what differs, figures, curves, and messages for what cannot be compared."""

import csv
import json
import shutil

import pytest
from pages import DIFFERENT_KEYS, Page
from tiny_run import copy_run, run_in_process, tiny_config, with_weights

from pipeline.report.comparison import (
    comparison_csv,
    comparison_lines,
    comparison_rows,
    render_comparison,
)
from pipeline.report.summary import read_summary
from pipeline.run import load_run
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.fingerprint import fingerprint
from stages import distill, evaluate
from stages.command_line import run


@pytest.fixture(scope="module")
def two_runs(finished, tmp_path_factory):
    """A folder with the tiny run, and one of another learning rate whose metrics have no teacher."""
    folder = tmp_path_factory.mktemp("two")
    path = copy_run(finished, folder, distill__lr=0.05)
    for outputs in ("checkpoints", "shards"):
        shutil.copytree(folder / outputs / "tiny", folder / outputs / "faster")
    config = load_run(path, ["name=faster"])
    config.student_path(0).unlink()
    config.metrics_path().unlink()
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    return folder


@pytest.fixture
def copied(two_runs, tmp_path):
    """A copy of both runs, to be changed."""
    shutil.copytree(two_runs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_json(path, change):
    content = read_json(path)
    change(content)
    write_json(path, content)


def change_config(folder, name, change):
    """Change the config that the evaluation of a run states."""
    change_json(folder / f"checkpoints/{name}/eval-0.json", lambda evaluation: change(evaluation["config"]))


def keep_six(shards):
    """Mark a set by a number of images of its own: that of its first shard."""

    def shorten(manifest):
        identity = manifest["identity"]
        identity["synthesis"]["num_images"] = 6
        manifest.update(num_images=6, shards=manifest["shards"][:1], fingerprint=fingerprint(identity))

    change_json(shards / "0/manifest.json", shorten)


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
    assert page.rows(DIFFERENT_KEYS)[1:] == [["distill.lr", "0.1", "0.05"]]
    labels = [text for text in page.texts["text"] if text in ("tiny", "faster")]
    assert labels.count("faster") == 1  # of distillation alone
    assert labels.count("tiny") == len(page.texts["figcaption"]) == 4


def test_runs_named_by_paths(two_runs):
    (named,) = summaries(two_runs, "tiny")
    by_path = read_summary(str(two_runs / "checkpoints" / "tiny"), two_runs / "elsewhere")
    assert (by_path.config, by_path.figures) == (named.config, named.figures)
    assert by_path.config["synthesis.inversion.phases.0.steps"] == 4


def test_values_are_yaml_and_a_list_has_one_row(copied):
    def change(config):
        config["classes"] = list(range(10))
        config["sinks"] = ["tensorboard"]  # which changes no output
        config["distill"]["compile"] = True
        config["synthesis"]["inversion"]["phases"].append({"steps": 2})
        del config["evaluation"]["batch_size"]  # as in an earlier version

    change_config(copied, "faster", change)
    keys, _ = comparison_rows(summaries(copied, "tiny", "faster"))
    assert sorted(keys) == [
        ("classes", "null", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"),
        ("distill.compile", "false", "true"),
        ("distill.lr", "0.1", "0.05"),
        ("evaluation.batch_size", "500", "-"),
        ("synthesis.inversion.phases.1.steps", "-", "2"),
    ]
    csv_rows = list(csv.DictReader(comparison_csv(summaries(copied, "tiny", "faster")).splitlines()))
    assert [row["evaluation.batch_size"] for row in csv_rows] == ["500", ""]
    assert csv_rows[0]["classes"] == "null"


def test_equal_runs_have_no_table_of_keys(copied):
    change_config(copied, "faster", lambda config: config["distill"].update(lr=0.1))
    runs = summaries(copied, "tiny", "faster")
    assert comparison_lines(runs)[2].startswith("round")
    assert "Nothing differs." in render_comparison(runs)


def test_images_are_those_that_the_config_names(copied, two_runs):
    keep_six(copied / "shards/faster")  # beside the checkpoints, but the config names `two_runs`
    assert summaries(copied, "faster")[0].figures["images"] == 60
    change_config(copied, "faster", lambda config: config.update(shards_dir="shards", checkpoints_dir="checkpoints"))
    (moved,) = summaries(copied, "faster")  # paths that start from the working folder of the run
    assert (moved.figures["images"], moved.notes) == (6, [])
    change_config(copied, "faster", lambda config: config.update(shards_dir="absent"))
    (absent,) = summaries(copied, "faster")
    assert absent.notes == [f"no images in {copied / 'absent/faster'}"]
    assert read_summary("faster", copied / "checkpoints", copied / "shards").figures["images"] == 6


def test_images_of_a_run_without_evaluation_are_in_the_named_folder(copied, capsys):
    (copied / "checkpoints/faster/eval-0.json").unlink()
    (copied / "shards").rename(copied / "elsewhere")
    arguments = ["tiny", "faster", "--checkpoints-dir", str(copied / "checkpoints")]
    message = error_of_compare(capsys, *arguments)
    assert f"has no evaluation, and {copied / 'shards/faster'} no images" in message
    assert "--shards-dir FOLDER" in message
    assert run(["compare", *arguments, "--shards-dir", str(copied / "elsewhere")]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["images"] == ["60", "60"]


def test_run_that_learned_from_given_sets(copied, finished, teacher_weights):
    scored = copied / "scored"
    shutil.copytree(finished / "shards/tiny/0", scored)
    change_json(scored / "manifest.json", lambda manifest: manifest["scores"].update(verifier_top1=0.25))
    sets = [str(finished / "shards/tiny/0"), str(scored)]
    config = tiny_config(copied / "given", **with_weights(teacher_weights, distill__shards=sets))
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    result = read_summary(str(config.checkpoints), copied)
    assert (result.figures["images"], result.notes) == (120, [])
    assert result.figures["images_verifier_top1"] == 0.25  # of the images that a verifier scored
    keys, _ = comparison_rows([*summaries(copied, "tiny"), result])
    assert ("distill.shards", "[]", f"[{sets[0]}, {sets[1]}]") in keys
    assert not [key for key, *_ in keys if key.startswith(("synthesis", "verifier", "ensemble"))]
    change_config(copied, "faster", lambda config: config["synthesis"].update(batch_size=30))
    keys, _ = comparison_rows([*summaries(copied, "tiny", "faster"), result])
    assert [row for row in keys if row[0].startswith("synthesis")] == [("synthesis.batch_size", "20", "30", "-")]
    shutil.rmtree(scored)
    assert read_summary(str(config.checkpoints), copied).notes == [f"no images in {scored}"]


def test_other_files_of_the_user_are_no_evaluations(copied):
    before = summaries(copied, "faster")
    (copied / "checkpoints/faster/eval-old.json").write_text("{}")
    assert summaries(copied, "faster") == before


def test_long_names_are_told_apart_in_charts(copied):
    names = [f"a_long_name_of_a_run_of_{kind}_images_and_more" for kind in ("few", "many")]
    for name, former in zip(names, ("tiny", "faster"), strict=True):
        (copied / "checkpoints" / former).rename(copied / "checkpoints" / name)
    page = Page(render_comparison(summaries(copied, *names)))
    assert {"…few_images_and_more", "…many_images_and_more"} <= set(page.texts["text"])


def test_unknown_run_is_named_with_those_that_exist(two_runs, capsys):
    message = error_of_compare(capsys, "tiny", "fastr", "--checkpoints-dir", str(two_runs / "checkpoints"))
    assert "error: there is no run fastr: no folder" in message
    assert "did you mean faster? (runs: faster, tiny)" in message


def test_one_run_cannot_be_compared(two_runs, capsys):
    message = error_of_compare(capsys, "tiny", "tiny", "--checkpoints-dir", str(two_runs / "checkpoints"))
    assert 'error: tiny tiny: name at least two different runs: dreamdistill compare a b (make: RUNS="a b")' in message


def test_run_without_evaluation_is_compared_by_its_images(copied, capsys):
    (copied / "checkpoints/faster/eval-0.json").unlink()
    assert run(["compare", "tiny", "faster", "--checkpoints-dir", str(copied / "checkpoints")]) == 0
    out = capsys.readouterr().out
    assert "faster: not evaluated: run the stage `evaluate`" in out
    row = next(line for line in out.splitlines() if line.startswith("student_top1 "))
    assert row.split()[-1] == "-"


def test_evaluation_of_another_version_is_named(two_runs, copied, capsys):
    path = copied / "checkpoints/faster/eval-0.json"
    change_json(path, lambda evaluation: evaluation.pop("config"))
    (before,), (after,) = summaries(two_runs, "faster"), summaries(copied, "faster")
    assert before.figures == after.figures  # the configuration is that beside the images
    write_json(path, {"recovered": 0.9, "student": {}, "teacher": {}})
    message = error_of_compare(capsys, "tiny", "faster", "--checkpoints-dir", str(copied / "checkpoints"))
    assert f"another version wrote {path} (it has no accuracy_retention); run the stage `evaluate` again" in message
