"""`make clean`: it removes the outputs of one run or round, names them, and shows them first if asked to."""

import errno
import warnings

import pytest
from tiny_run import copy_run, digests, write_config

from pipeline.run import load_run
from pipeline.runtime.locks import exclusive_lock
from stages.command_line import run


def run_clean(monkeypatch, path, *arguments: str) -> None:
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "cpu")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    assert run(["clean", "--config", str(path), *arguments]) == 0


def test_run_without_outputs_has_nothing_to_remove(monkeypatch, tmp_path, capsys):
    path = write_config(tmp_path)
    run_clean(monkeypatch, path)
    assert capsys.readouterr().out.splitlines() == ["clean: nothing to remove"]
    assert list(tmp_path.iterdir()) == [path]


def test_both_folders_of_a_run_are_removed(monkeypatch, finished, tmp_path, capsys):
    path = copy_run(finished, tmp_path)
    run_clean(monkeypatch, path)
    removed = [f"clean: removed {tmp_path / name}" for name in ("shards/tiny", "checkpoints/tiny")]
    assert capsys.readouterr().out.splitlines() == removed
    assert list(digests(tmp_path)) == ["tiny.yaml"]


@pytest.mark.parametrize("content", ["{", "{}", '{"format": 1}'])
def test_damaged_outputs_are_removed(monkeypatch, finished, tmp_path, content):
    path = copy_run(finished, tmp_path)
    for file in load_run(path).round_folder(0).glob("manifest*.json"):
        file.write_text(content)
    run_clean(monkeypatch, path)
    assert list(digests(tmp_path)) == ["tiny.yaml"]


def test_a_run_that_another_process_works_on_stays(monkeypatch, finished, tmp_path, capsys):
    path = copy_run(finished, tmp_path)
    before = digests(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    with exclusive_lock(load_run(path).shards / ".lock"):
        assert run(["clean", "--config", str(path)]) == 2
    assert "another process works on" in capsys.readouterr().err
    assert {name: digest for name, digest in digests(tmp_path).items() if name in before} == before


def test_an_output_that_cannot_be_removed_is_named(monkeypatch, finished, tmp_path, capsys):
    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system", "manifest.json")

    path = copy_run(finished, tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    monkeypatch.setattr("shutil.rmtree", refuse)
    assert run(["clean", "--config", str(path)]) == 2
    assert capsys.readouterr().err == f"error: cannot remove {tmp_path}/shards/tiny: Read-only file system\n"


@pytest.mark.parametrize("num_processes", ["1", "2"])
def test_dry_run_names_what_would_be_removed(monkeypatch, finished, tmp_path, capsys, num_processes):
    path = copy_run(finished, tmp_path)
    before = digests(tmp_path)
    run_clean(monkeypatch, path, "--dry-run", "--processes", num_processes)
    planned = [f"clean: would remove {tmp_path / name}" for name in ("shards/tiny", "checkpoints/tiny")]
    assert capsys.readouterr().out.splitlines() == planned
    assert digests(tmp_path) == before


def test_dry_run_of_one_round_names_its_files(monkeypatch, finished, tmp_path, capsys):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    run_clean(monkeypatch, path, "--dry-run", "--round", "0")
    planned = [line.removeprefix("clean: would remove ") for line in capsys.readouterr().out.splitlines()]
    names = ("report.html", "evolution-0.png", "grid-0.png")
    files = [config.student_path(0), config.evaluation_path(0), config.evaluation_path(0).with_suffix(".csv")]
    assert planned == list(map(str, [config.round_folder(0), *files, *(config.checkpoints / name for name in names)]))
