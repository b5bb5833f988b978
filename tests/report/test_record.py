"""What of a run the report reads: whatever exists, of this identity alone."""

import shutil
from argparse import Namespace

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

from pipeline.data.parts import ShardError
from pipeline.data.samples import read_metadata
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.pool import Pool
from pipeline.report import record
from pipeline.report.record import RunRecord, read_record
from pipeline.run import load_run
from pipeline.runtime.config import ConfigError
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.files import read_json
from pipeline.runtime.fingerprint import source_version, versions
from stages import distill, evaluate, report, stage, synthesize

SETS = "Each set of images with its mean scores, and the student"


def run_report(config) -> Page:
    run_in_process(report.main, config)
    return Page((config.checkpoints / "report.html").read_text())


def record_of(config, last_round: int | None = None) -> RunRecord:
    return read_record(config, Pool(config, DistributedContext()), last_round, {})


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
    assert page.rows(SETS)[1][:2] == ["round 0", "-"]


def test_report_of_two_rounds_and_of_the_first_alone(tmp_path, teacher_weights):
    config = tiny_config(tmp_path, **TWO_ROUNDS, **with_weights(teacher_weights))
    for r in range(2):
        run_in_process(synthesize.main, config, r)
        run_in_process(distill.main, config, r)
        Image.new("RGB", (80, 16), (255 * r, 0, 0)).save(config.checkpoints / f"evolution-{r}.png")
    run_in_process(evaluate.main, config, 0)
    both = record_of(config)
    assert [(r.title, r.student_round) for r in both.rounds] == [("round 0", 0), ("round 1", 1)]
    assert both.evaluated.student_round == 0
    assert list(both.strips) == [0, 1]
    assert {image.set_title for image in both.images} == {"round 0", "round 1"}
    assert {line["round"] for line in both.lines if line["stage"] == "synthesize"} == {0, 1}
    shard_set = ShardSet([config.round_folder(r) for r in range(2)])
    assert [shard_set.keys[image.position] for image in both.images] == [image.key for image in both.images]
    first = record_of(config, 0)
    assert [r.title for r in first.rounds] == ["round 0"]
    assert {line.get("round", 0) for line in first.lines} == {0}
    assert "images of round 1 over the steps of their inversion" in run_report(config).values("img", "alt")


def test_preview_is_that_of_a_round_of_the_report(tmp_path, finished, monkeypatch):
    path = copy_run(finished, tmp_path, **TWO_ROUNDS)
    shutil.rmtree(tmp_path / "shards")
    config = load_run(path)
    config.student_path(0).unlink()
    run_in_process(synthesize.main, config, 0)
    Image.new("RGB", (8, 8)).save(config.checkpoints / "preview.png")
    assert record_of(config).preview is not None  # of round 1
    assert record_of(config, 0).preview is None

    def embed_file(path):
        raise FileNotFoundError  # as if synthesis had just finished the round

    monkeypatch.setattr(record, "embed_file", embed_file)
    for strip in config.checkpoints.glob("evolution-*.png"):
        strip.unlink()
    assert record_of(config).preview is None


@pytest.mark.parametrize("step", [1, -1])
def test_report_of_given_sets_with_and_without_a_verifier(tmp_path, finished, teacher_weights, step):
    verifier = {"source": "cifar10:resnet8", "options": {"width": 4}, "weights": str(teacher_weights)}
    scored = tiny_config(
        tmp_path / "scored", **with_weights(teacher_weights, verifier={**verifier, "mean": [0.3], "std": [0.37]})
    )
    run_in_process(synthesize.main, scored)
    sets = [str(tiny_config(finished).round_folder(0)), str(scored.round_folder(0))][::step]
    config = tiny_config(tmp_path, **with_weights(teacher_weights, distill__shards=sets))
    page = run_report(config)
    assert "120 synthetic images, and no student yet" in page.source
    assert "verifier, 60 images" in page.texts["text"]
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    result = record_of(config)
    assert [(r.title, r.student_round) for r in result.rounds] == [(sets[0], None), (sets[1], None), ("student", 0)]
    page = run_report(config)
    assert [row[0] for row in page.rows(SETS)[1:]] == [*sets, "student"]
    assert page.rows(SETS)[3][1] == "-"
    assert any(alt.endswith(f", {sets[0]}") for alt in page.values("img", "alt"))


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
    assert "The student is not evaluated yet: run the stage <code>evaluate</code>." in run_report(config).source
    run_in_process(evaluate.main, config)
    assert "up to date" not in capsys.readouterr().out


def test_images_of_another_identity_are_not_shown(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, synthesis__num_images=50))
    with pytest.raises(ConfigError, match="num_images: 60 before, 50 now"):
        record_of(config)


def test_report_states_where_outputs_were_made(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    verbs = ("images packed", "evaluated", "this page written")
    origins = [f"{verb} {word}" for verb in verbs for word in ("on", "with")]
    assert run_report(config).texts["dt"][-7:] == ["command", *origins]
    manifest, evaluation = read_manifest(config.round_folder(0)), read_json(config.evaluation_path(0))
    assert manifest["device"] == evaluation["device"]
    assert manifest["versions"] == evaluation["versions"] == versions()
    assert manifest["versions"]["dreamdistill"] == source_version()


def test_report_states_the_command_that_repeats_the_run(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    assert run_command(monkeypatch, report.main, path, "distill.log_every=1", "distill.save_every_s=1") == 0
    page = Page((load_run(path).checkpoints / "report.html").read_text())
    assert f"dreamdistill run --config {path} distill.log_every=1 distill.save_every_s=1" in page.texts["code"]
    config_yaml = load_run(path).round_folder(0) / "config.yaml"
    assert (
        f"dreamdistill run --config {config_yaml}" in run_report(load_run(path)).texts["code"]
    )  # not started by a command


def test_command_that_repeats_a_run_of_several_processes_starts_as_many():
    arguments = Namespace(config="a b.yaml", overrides=["seed=1"], processes=2)
    assert stage.run_command(arguments) == "dreamdistill run --config 'a b.yaml' seed=1 --processes 2"


def test_many_images_are_sampled_from_every_class(finished, monkeypatch):
    limits = {"SCORED_IMAGES": 20, "COMPARED_IMAGES": 20, "SHOWN_CLASSES": 4, "SHOWN_PIXELS": 4 * 64 * 3}
    limits["DECODED_IMAGES"] = 8
    for name, value in limits.items():
        monkeypatch.setattr(record, name, value)
    num_decoded, read_batch = [], ShardSet.batch
    monkeypatch.setattr(ShardSet, "batch", lambda self, i: num_decoded.append(len(i)) or read_batch(self, i))
    result = record_of(tiny_config(finished))
    assert [image.label for image in result.images] == [label for label in range(10) for _ in range(2)]
    assert [image.label for image, _ in result.shown] == [0, 0, 3, 3, 6, 6, 9, 9]
    assert result.diversity.num_images == 20
    assert num_decoded == [8, 8, 4]


def test_metadata_is_that_of_the_first_samples(tmp_path):
    write_round(tmp_path)
    samples = list(read_metadata(tmp_path / "train" / "0003-00000.tar", 5))
    assert [(key, metadata["label"]) for key, metadata in samples] == [("0003/000003", 3), ("0003/000015", 3)]
    assert len(list(read_metadata(tmp_path / "train" / "0003-00000.tar", 1))) == 1
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(ShardError, match=r"broken.tar is damaged"):
        list(read_metadata(tmp_path / "broken.tar", 1))
