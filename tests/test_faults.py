"""A few faults of each campaign of `benchmarks.faults`, which has them all."""

import os
import random
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from itertools import islice

import pytest
from tiny_run import REPOSITORY

from benchmarks.faults import flips as flips_module
from benchmarks.faults.disks import disks
from benchmarks.faults.flips import State, damage, flips, same_values
from benchmarks.faults.hostile import hostile
from benchmarks.faults.kills import kill_moments, kill_operations
from benchmarks.faults.parsers import PARSERS, Harm, install_guard, require_clean_end, write_seeds
from benchmarks.faults.trials import FAILED, SKIPPED, Outcome, Trial, summary, try_all
from benchmarks.faults.work import Work
from pipeline.runtime.digests import seal

# Random inputs for each parser, each with one to so many flips and cuts.
NUM_INPUTS, MAX_DAMAGES = 60, 3


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder to work in, with a finished run and what it made."""
    work = Work(tmp_path_factory.mktemp("faults"))
    work.reference()
    shutil.copytree(work.run, work.folder / "finished")
    return work


def options(**values):
    return Namespace(**{"seed": 0, "number": 0, "every": 1, **values})


def assert_survived(trials):
    for trial in trials:
        outcome = trial.run()
        if outcome.word == SKIPPED:
            pytest.skip(outcome.detail)
        assert outcome.word != FAILED, f"{trial.name}: {outcome.detail}"


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(work):
    assert_survived(kill_moments(work, options(number=3)))


@pytest.mark.slow
def test_kills_before_file_operations_change_nothing(work):
    assert_survived(kill_operations(work, options(every=80, seed=25)))


@pytest.mark.slow
def test_flips_are_named_or_harmless(work, monkeypatch):
    distilling = State([("run", ())], 1, r"rename .*student-1\.state")
    monkeypatch.setattr(flips_module, "STATES", {"distilling": distilling})
    assert_survived(flips(work, options(number=14, seed=3)))


@pytest.mark.slow
def test_full_disks_are_named_and_the_run_continues(work):
    assert_survived(islice(disks(work, options(number=3)), 3))


@pytest.mark.slow
def test_hostile_contents_do_no_harm(work):
    one_of_kind = {trial.kind: trial for trial in reversed(list(hostile(work, options())))}
    assert_survived(one_of_kind[kind] for kind in ("manifest", "weights", "config", "arrays", "links"))


@pytest.mark.parametrize("name", PARSERS)
def test_random_inputs_end_as_they_must(work, name, tmp_path):
    write_seeds(work.folder / "finished", tmp_path)
    install_guard()
    draw, seeds = random.Random(0), [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    assert seeds
    for _ in range(NUM_INPUTS):
        content = draw.choice(seeds)
        for _ in range(draw.randint(1, MAX_DAMAGES)):
            content = damage(content, draw)[0] if content else content
        require_clean_end(name, content, tmp_path)


def python_in(run, code):
    """The exit code of Python code in the folder of a run; it is a process of its own, since audit hooks stay."""
    head = "import os\nfrom pathlib import Path\nfrom benchmarks.faults.operations import *\nrun = Path.cwd()\n"
    run.mkdir()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", head + code], cwd=run, env=environment, check=False).returncode


def test_a_process_is_killed_before_an_operation(tmp_path):
    code = """
watch_operations(run, run.parent / "log", kill_at=3)
with open(run / "a.tmp", "wb") as file:
    os.fsync(file.fileno())
os.replace(run / "a.tmp", run / "a")
(run.parent / "b").touch()
(run / "a").unlink()
"""
    assert python_in(tmp_path / "run", code) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == "open a.tmp\nos.fsync a.tmp\nos.rename a.tmp\nos.remove a\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_harm_is_listed(tmp_path):
    code = """
(run / "link").symlink_to(run.parent / "canary")
(run / "other").symlink_to(run.parent / "canary")
watch_for_harm(run, run.parent / "log")
(run / "a").write_text("")
(run / "other").unlink()
(run / "link").write_text("")
os.system("true")
"""
    assert python_in(tmp_path / "run", code) == 0
    written, started = (tmp_path / "log").read_text().splitlines()
    assert written == f"open {tmp_path / 'canary'}"
    assert started.startswith("os.system")


def test_a_parser_that_writes_is_found(monkeypatch, tmp_path):
    install_guard()
    monkeypatch.setattr("benchmarks.faults.parsers.read_manifest", lambda folder: (folder / "other").touch())
    with pytest.raises(Harm, match="other"):
        require_clean_end("manifest", b"", tmp_path)


def test_an_error_without_the_name_of_its_file_is_found(monkeypatch, tmp_path):
    def fail(folder):
        raise ValueError("damaged")

    monkeypatch.setattr("benchmarks.faults.parsers.read_manifest", fail)
    with pytest.raises(AssertionError, match="does not name the file"):
        require_clean_end("manifest", b"", tmp_path)


def test_results_tell_paths_from_the_folder_of_the_campaign(tmp_path):
    failing = Trial("a", "kind", lambda: Outcome(FAILED, f"cannot read {tmp_path / 'run/x.tar'}"))
    assert summary(try_all([failing], tmp_path / "trials.jsonl"))[FAILED] == ["a: cannot read run/x.tar"]


def test_a_campaign_continues_after_its_last_trial(tmp_path):
    tried = []

    def trial(name, word):
        return Trial(name, "kind", lambda: tried.append(name) or Outcome(word, "why"))

    try_all([trial("a", "named")], tmp_path / "trials.jsonl")
    result = summary(try_all([trial("a", "named"), trial("b", FAILED)], tmp_path / "trials.jsonl"))
    assert tried == ["a", "b"]
    assert result["outcomes"] == {"named": 1, FAILED: 1}
    assert result[FAILED] == ["b: why"]


def test_damage_without_effect_is_known():
    spaced, other = (str(seal({"a": value})).replace("'", '"').encode() for value in (1, 2))
    assert same_values(".json", spaced, spaced + b" ")
    assert not same_values(".json", spaced, other)
    assert same_values(".jsonl", b"{}\n{}\n", b"{}\n")
    assert not same_values(".jsonl", b"{}\n{}\n", b"{}\n{")
    assert not same_values(".html", b"a", b"b")
