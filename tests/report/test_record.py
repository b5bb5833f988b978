"""What of a run the report reads: whatever exists, of this identity alone."""

import shutil

import pytest
from pages import Page
from PIL import Image
from tiny_run import (
    TWO_ROUNDS,
    copy_run,
    run_command,
    run_in_process,
    tiny_config,
    with_weights,
    write_config,
    write_round,
)

from pipeline.data.samples import read_metadata
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import ShardError
from pipeline.pool import Pool
from pipeline.report import record
from pipeline.report.record import evenly_spaced, read_record
from pipeline.run import load_run
from pipeline.runtime.config import ConfigError
from pipeline.runtime.distributed import DistributedContext
from stages import distill, evaluate, report, synthesize


def run_report(config) -> Page:
    run_in_process(report.main, config)
    return Page((config.checkpoints / "report.html").read_text())


def test_report_of_shards_alone_then_with_a_student_then_with_its_figures(tmp_path, teacher_weights):
    config = tiny_config(tmp_path, **with_weights(teacher_weights))
    run_in_process(synthesize.main, config)
    page = run_report(config)
    assert "60 synthetic images, and no student yet" in page.source
    assert len(page.pictures()) == 60 + 1  # the evolution
    run_in_process(distill.main, config)
    assert "The student is not evaluated yet" in run_report(config).source
    run_in_process(evaluate.main, config)
    assert "of 500 real images correctly" in run_report(config).source


def test_report_of_the_synthesis_under_way(tmp_path, finished):
    config = load_run(copy_run(finished, tmp_path))
    shutil.rmtree(config.shards)
    config.student_path(0).unlink()
    Image.new("RGB", (8, 8)).save(config.checkpoints / "preview.png")
    page = run_report(config)
    assert len(page.pictures()) == 2  # and the evolution
    assert "Inversion: classification" in page.texts["figcaption"]


def test_student_whose_images_were_removed_keeps_its_figures(tmp_path, finished):
    config = load_run(copy_run(finished, tmp_path))
    shutil.rmtree(config.shards)
    page = run_report(config)
    assert "of 500 real images correctly" in page.source
    assert page.rows("Images of each round with their mean scores, and its student")[1][0] == "0"


def test_report_of_two_rounds_and_of_the_first_alone(tmp_path, teacher_weights):
    config = tiny_config(tmp_path, **TWO_ROUNDS, **with_weights(teacher_weights))
    for r in range(2):
        run_in_process(synthesize.main, config, r)
        run_in_process(distill.main, config, r)
        Image.new("RGB", (80, 16), (255 * r, 0, 0)).save(config.checkpoints / f"evolution-{r}.png")
    run_in_process(evaluate.main, config, 0)
    both = read_record(config, Pool(config, DistributedContext()), None, {})
    assert [one.index for one in both.rounds] == [0, 1]
    assert both.evaluated.index == 0
    assert list(both.strips) == [0, 1]
    assert {image.round_index for image in both.images} == {0, 1}
    assert {line["round"] for line in both.lines if line["stage"] == "synthesize"} == {0, 1}
    shard_set = ShardSet([config.round_folder(r) for r in range(2)])
    assert [shard_set.keys[image.position] for image in both.images] == [image.key for image in both.images]
    first = read_record(config, Pool(config, DistributedContext()), 0, {})
    assert [one.index for one in first.rounds] == [0]
    assert {line.get("round", 0) for line in first.lines} == {0}
    assert "images of round 1 over the steps of their inversion" in run_report(config).values("img", "alt")


def test_run_without_any_output_has_nothing_to_report(error_of, tmp_path, teacher_weights):
    message = error_of(report, write_config(tmp_path, **with_weights(teacher_weights)))
    assert "there is nothing to report yet, neither in " in message
    assert "run the stage `synthesize` first" in message


def test_evaluation_of_an_earlier_version_is_made_again(finished, tmp_path, monkeypatch, capsys):
    path = copy_run(finished, tmp_path)
    monkeypatch.setattr("pipeline.identity.EVALUATION_VERSION", 1)
    config = load_run(path)
    run_in_process(evaluate.main, config)
    assert "up to date" not in capsys.readouterr().out
    monkeypatch.undo()
    run_report(config)  # an evaluation of the same student is shown
    run_in_process(evaluate.main, config)
    assert "up to date" not in capsys.readouterr().out


def test_images_of_another_identity_are_not_shown(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, synthesis__num_images=50))
    with pytest.raises(ConfigError, match="num_images: 60 before, 50 now"):
        read_record(config, Pool(config, DistributedContext()), None, {})


def test_report_states_the_command_that_repeats_the_run(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    assert run_command(monkeypatch, report.main, path, "distill.log_every=1", "distill.save_every_s=1") == 0
    page = Page((load_run(path).checkpoints / "report.html").read_text())
    assert f"dreamdistill run --config {path} distill.log_every=1 distill.save_every_s=1" in page.texts["code"]
    config_yaml = load_run(path).round_folder(0) / "config.yaml"
    assert (
        f"dreamdistill run --config {config_yaml}" in run_report(load_run(path)).texts["code"]
    )  # not started by a command


def test_many_images_are_sampled_from_every_class(finished, monkeypatch):
    limits = {"SCORED_IMAGES": 20, "COMPARED_IMAGES": 20, "SHOWN_CLASSES": 4, "SHOWN_PIXELS": 4 * 64 * 3}
    for name, value in limits.items():
        monkeypatch.setattr(record, name, value)
    config = tiny_config(finished)
    result = read_record(config, Pool(config, DistributedContext()), None, {})
    assert [image.label for image in result.images] == [label for label in range(10) for _ in range(2)]
    assert [image.label for image, _ in result.shown] == [0, 0, 3, 3, 6, 6, 9, 9]
    assert result.diversity.num_images == 20


def test_metadata_is_that_of_the_first_samples(tmp_path):
    write_round(tmp_path)
    samples = list(read_metadata(tmp_path / "train" / "0003-00000.tar", 5))
    assert [(key, metadata["label"]) for key, metadata in samples] == [("0003/000003", 3), ("0003/000015", 3)]
    assert len(list(read_metadata(tmp_path / "train" / "0003-00000.tar", 1))) == 1
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(ShardError, match=r"broken.tar is damaged"):
        list(read_metadata(tmp_path / "broken.tar", 1))


def test_evenly_spaced_items_include_both_ends():
    assert evenly_spaced("abc", 5) == ["a", "b", "c"]
    assert evenly_spaced(range(10), 4) == [0, 3, 6, 9]
    assert evenly_spaced(range(10), 1) == [0]
