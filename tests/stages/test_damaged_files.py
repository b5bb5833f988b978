"""Missing, damaged and unwritable files of a run: the message names the file and the fix."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest
from tiny_run import copy_run, digests, remove_manifest, run_command, with_weights, write_config

from pipeline.data.shards import CONFIG_FILE
from pipeline.run import load_run
from pipeline.runtime import files
from pipeline.runtime.files import read_json
from stages import chain, distill, evaluate, quality, report, synthesize, teacher, verify


def alter(path: Path, at: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "complaint", "has_student"),
    [
        (alter, "was altered", False),
        (truncate, "truncated", False),
        (truncate, "truncated", True),
        (Path.unlink, "is missing", False),
        (Path.unlink, "is missing", True),
    ],
)
def test_damaged_shard_stops_distill_and_verify(error_of, finished, tmp_path, damage, complaint, has_student):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    tar = config.round_folder(0) / "train" / "0003-00000.tar"
    damage(tar)
    if not has_student:
        config.student_path(0).unlink()
    message = error_of(distill, path)
    assert f"{tar} " in message
    assert complaint in message
    assert "run the stage `synthesize` again, which makes damaged images anew" in message
    assert config.student_path(0).exists() == has_student
    assert f"{tar} " in error_of(verify, path)


def test_a_shard_that_is_not_in_the_manifest_stops_distill_until_it_is_removed(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    tar = config.round_folder(0) / "train" / "0003-00009.tar"
    tar.touch()
    config.student_path(0).unlink()
    assert error_of(distill, path) == f"error: {tar} is not in the manifest; remove it\n"


def test_each_stage_names_the_stage_that_is_missing_before_it(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    config.evaluation_path(0).unlink()
    config.student_path(0).unlink()
    message = error_of(evaluate, path)
    assert (
        message == f"error: there is no student of round 0 ({config.student_path(0)}); run the stage `distill` first\n"
    )
    remove_manifest(config.round_folder(0))
    for stage in (distill, quality):
        message = error_of(stage, path)
        assert f"{config.round_folder(0)} holds no complete" in message
        assert "run the stage `synthesize` first" in message


def test_second_round_needs_the_first_student_and_its_own_shards(error_of, tmp_path, teacher_weights):
    rounds = {"synthesis__rounds": 2, "synthesis__batch_size": 20, "synthesis__inversion__terms__competition": 1.0}
    path = write_config(tmp_path, **with_weights(teacher_weights, **rounds))
    assert "there is no student of round 0" in error_of(synthesize, path, "--round", "1")
    assert "holds no complete synthetic dataset" in error_of(distill, path, "--round", "1")


def test_truncated_student_raises(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    student = load_run(path).student_path(0)
    student.write_bytes(student.read_bytes()[:1000])
    for stage in (distill, evaluate):
        assert f"{student} is truncated or not a safetensors file" in error_of(stage, path)


@pytest.mark.parametrize("name", ["shards", "shards/tiny"])
def test_unwritable_shards_folder_raises(error_of, tmp_path, teacher_weights, name):
    path = write_config(tmp_path, **with_weights(teacher_weights))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a file in place of the folder")
    message = error_of(synthesize, path)
    assert f"cannot write {tmp_path / 'shards/tiny'}:" in message
    assert "a file has the name of a folder: remove it, or set shards_dir" in message


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/tiny"])
def test_unwritable_checkpoints_folder_raises(error_of, tmp_path, name):
    path = write_config(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a file in place of the folder")
    assert str(tmp_path / name) in error_of(teacher, path)


@pytest.mark.parametrize("name", ["parts/000001.tar", "train/0004-00000.tar", "manifest.json"])
def test_synthesis_resumes_after_a_full_disk(
    error_of, finished, tmp_path, teacher_weights, monkeypatch, fill_disk_at, name
):
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(teacher_weights.read_bytes())
    file = config.round_folder(0) / name
    fill_disk_at(file)
    message = error_of(synthesize, path)
    assert f"cannot write {file}: the disk or quota is full: free space and run the same command again" in message
    assert not file.exists()
    assert (config.round_folder(0) / "parts" / "000000.tar").exists()
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert digests(config.round_folder(0), exclude=[CONFIG_FILE]) == digests(
        finished / "shards/tiny/0", exclude=[CONFIG_FILE]
    )


@pytest.mark.parametrize("damage", [partial(alter, at=1550), truncate, lambda path: path.write_bytes(b"")])
def test_damaged_parts_are_made_again(
    error_of, finished, tmp_path, teacher_weights, monkeypatch, capsys, fill_disk_at, damage
):
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(teacher_weights.read_bytes())
    folder = config.round_folder(0)
    fill_disk_at(folder / "manifest.json")
    error_of(synthesize, path)
    for index in (0, 2):
        damage(folder / f"parts/{index:06d}.tar")
    assert run_command(monkeypatch, synthesize.main, path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("its batch is made again")]
    assert [line.partition(".tar is damaged")[0][-6:] for line in lines] == ["000000", "000002"]
    assert digests(folder, exclude=[CONFIG_FILE]) == digests(finished / "shards/tiny/0", exclude=[CONFIG_FILE])


def test_distillation_resumes_after_a_full_disk(error_of, finished, tmp_path, monkeypatch, fill_disk_at):
    path = copy_run(finished, tmp_path, distill__save_every_s=0)
    student = load_run(path).student_path(0)
    complete = student.read_bytes()
    student.unlink()
    fill_disk_at(student)
    assert f"cannot write {student}: the disk or quota is full" in error_of(distill, path)
    assert not student.exists()
    assert student.with_suffix(".state").exists()
    assert run_command(monkeypatch, distill.main, path) == 0
    assert student.read_bytes() == complete


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.99])
def test_truncated_training_state_raises(error_of, finished, tmp_path, fill_disk_at, fraction):
    path = copy_run(finished, tmp_path, distill__save_every_s=0)
    student = load_run(path).student_path(0)
    student.unlink()
    fill_disk_at(student)
    error_of(distill, path)
    state = student.with_suffix(".state")
    content = state.read_bytes()
    state.write_bytes(content[: int(fraction * len(content))])
    message = error_of(distill, path)
    assert str(state) in message
    assert "remove it to train from the start" in message


@pytest.mark.parametrize(
    ("pattern", "stage"), [("shards/tiny/0/manifest*.json", synthesize), ("checkpoints/tiny/eval-0.json", report)]
)
def test_damaged_json_raises(error_of, finished, tmp_path, pattern, stage):
    path = copy_run(finished, tmp_path)
    for file in tmp_path.glob(pattern):
        alter(file, at=40)
    assert f"{file} is damaged" in error_of(stage, path)


def test_full_disk_for_the_metrics_raises(error_of, tmp_path, teacher_weights):
    path = write_config(tmp_path, **with_weights(teacher_weights))
    metrics = load_run(path).metrics_path()
    metrics.parent.mkdir(parents=True)
    metrics.symlink_to("/dev/full")
    assert f"cannot write {metrics}: the disk or quota is full: free space" in error_of(synthesize, path)


def test_a_finished_run_on_a_read_only_disk_is_only_read(error_of, finished, tmp_path, monkeypatch, capsys):
    open_file = Path.open

    def refuse(path: Path, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def open_to_read(path: Path, mode="r", *arguments, **options):
        return refuse(path) if {*mode} & {*"wax+"} else open_file(path, mode, *arguments, **options)

    path = copy_run(finished, tmp_path)
    page = load_run(path).checkpoints / "report.html"
    assert run_command(monkeypatch, report.main, path) == 0
    with monkeypatch.context() as patched:
        patched.setattr(files, "open_new", refuse)
        patched.setattr(Path, "open", open_to_read)
        patched.setattr(Path, "unlink", refuse)
        for stage in (chain, evaluate, report, verify):
            assert run_command(monkeypatch, stage.main, path) == 0
    assert capsys.readouterr().out.count(f"report: {page} is up to date\n") == 2
    page.write_text("an older one")
    monkeypatch.setattr(files, "open_new", refuse)
    assert error_of(report, path).startswith(f"error: cannot write {page}: its file system is read-only: write to ")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_figures_beside_a_whole_teacher_are_written_again(finished, tmp_path, monkeypatch, damage):
    path = copy_run(finished, tmp_path)
    figures = load_run(path).trained_teacher_path.with_suffix(".json")
    top1 = read_json(figures)["top1"]
    damage(figures)
    assert run_command(monkeypatch, teacher.main, path) == 0
    assert read_json(figures)["top1"] == top1


def test_a_missing_table_is_written_again(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    table = load_run(path).evaluation_path(0).with_suffix(".csv")
    table.unlink()
    for stage in (evaluate, verify):
        assert run_command(monkeypatch, stage.main, path) == 0
    assert table.exists()
