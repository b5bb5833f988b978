"""What benchmarks share: results name the commit that they measured, so a tree with changes is refused."""

import argparse
import importlib
import subprocess
from pathlib import Path

import pytest
from tiny_run import tiny_config

from benchmarks import harness
from benchmarks.imagenet import control_images

MODULES = sorted(path.stem for path in Path(harness.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_benchmarks_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A committed tree with one file and one result."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "code.py").write_text("1\n")
    (results / "old.json").write_text("{}\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "All of it")
    monkeypatch.setattr(harness, "REPOSITORY", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", results)
    return git


def test_a_result_names_the_commit_and_results_before_it_are_no_changes(repository, tmp_path):
    (harness.RESULTS / "old.json").write_text("{1}\n")
    (harness.RESULTS / "new.json").write_text("{}\n")
    assert harness.measured_commit() == repository("describe", "--always")


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_tree_with_changes_is_refused_before_anything_is_measured(repository, tmp_path, name):
    (tmp_path / name).write_text("2\n")
    refused = pytest.raises(SystemExit, match=f"1 files are not as committed .*{name}.*commit or stash them")
    with refused, harness.open_benchmark():
        raise AssertionError("it was measured")


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "REPOSITORY", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "benchmarks" / "results")
    assert harness.measured_commit() == "unknown"


def test_options_have_no_folders():
    options = argparse.Namespace(folder=Path("/home/someone/runs"), source="python:/home/someone/net.py:Net", steps=3)
    assert harness.options_of(options) == {"folder": "runs", "source": "python:net.py:Net", "steps": 3}


def test_controls_of_an_imagenet_trial(tmp_path):
    """Noise is as many images as the run has, a yardstick is of its classes alone and not of the test."""
    config = tiny_config(tmp_path, classes=[7, 1, 4], data__test=f"shards:{tmp_path}")
    for source in ("noise", "start"):
        assert control_images(config, source).labels.bincount().tolist() == [20, 20, 20]
    assert sorted(set(control_images(config, "sklearn:digits").labels.tolist())) == [0, 1, 2]
    with pytest.raises(ValueError, match=f"--images shards:{tmp_path} are the images of the test"):
        control_images(config, config.data.test)
