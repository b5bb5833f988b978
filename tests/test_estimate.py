"""The estimate of time, memory and disk: its arithmetic, and its figures beside those of a run."""

import math
import time

import pytest
from pages import Page
from tiny_run import copy_run, finish, run_in_process, stage_command, start, tiny_config

from pipeline.estimate import TIMED_STEPS, Estimate, _Clock
from pipeline.run import RunConfig, load_run
from pipeline.runtime.files import read_json
from stages import chain, estimate, report


def run_estimate(config: RunConfig) -> dict:
    """The figures of an estimate."""
    run_in_process(estimate.main, config)
    return read_json(config.estimate_path)


def test_clock_separates_timed_steps_from_the_time_of_the_first():
    clock = _Clock()
    step_times = [9.0, *[2.0] * (2 * TIMED_STEPS - 1), 30.0, *[4.0] * (2 * TIMED_STEPS - 1)]
    clock._times = [sum(step_times[:i]) for i in range(len(step_times) + 1)]
    assert clock.split(0) == (2, 7)
    assert clock.split(2 * TIMED_STEPS) == (4, 26)


FIGURES = {
    "teacher_s": 0.0,
    "synthesize_s": 7200.0,
    "distill_s": 90.0,
    "compile_s": 2.04,
    "image_steps_per_s": 1000.0,
    "trained_images_per_s": 10.0,
    "peak_memory_bytes": 3 * 2**30,
    "shard_bytes": 5 * 2**20,
    "num_files": 15,
}


def test_lines_have_suitable_units():
    words = [line.split() for line in Estimate(**FIGURES).lines()]
    assert [" ".join(line[:3]).rstrip(",") for line in words] == [
        "synthesis 2.00 h",
        "distillation 1.5 min",
        "start-up 2.0 s",
        "memory 3.00 GiB",
        "disk 5.0 MiB",
    ]
    assert "disk          6.0 KiB of" in Estimate(**FIGURES | {"shard_bytes": 6 * 2**10}).lines()[-1]


def test_time_of_a_trained_teacher_has_a_line():
    assert Estimate(**FIGURES | {"teacher_s": 12.0}).lines()[0] == "teacher       12.0 s, measured: it is trained"


def test_files_and_bytes_are_those_of_the_run(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    figures = run_estimate(config)
    files = [path for path in config.round_folder(0).rglob("*") if path.is_file()]
    assert figures["num_files"] == len(files)
    shard_bytes = sum(path.stat().st_size for path in files if path.suffix == ".tar")
    assert 0 < figures["shard_bytes"] < shard_bytes  # a tar also has headers, labels and metadata
    assert all(figures[key] > 0 for key in figures if key != "compile_s")
    assert "synthesis " in capsys.readouterr().out


def test_estimate_does_not_change_the_run(finished, tmp_path):
    config = tiny_config(tmp_path)
    run_estimate(config)
    names = {path.name for path in config.checkpoints.iterdir()}
    assert names == {"estimate.json", "metrics.jsonl", "teacher.json", "teacher.safetensors"}
    run_in_process(chain.main, config)
    assert config.student_path(0).read_bytes() == tiny_config(finished).student_path(0).read_bytes()


def test_adaptive_rounds_are_timed_and_their_files_counted(tmp_path):
    rounds = {"synthesis__rounds": 2, "synthesis__inversion__terms__competition": 1.0, "distill__batch_size": 15}
    figures = run_estimate(tiny_config(tmp_path, **rounds, synthesis__batch_size=15))
    assert figures["num_files"] == 2 * (10 + 6)


def test_report_compares_the_estimate_with_the_run(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    page = config.checkpoints / "report.html"
    run_in_process(report.main, config)
    assert "There is no estimate" in page.read_text()
    run_estimate(config)
    run_in_process(report.main, config)
    parsed = Page(page.read_text())
    caption = next(text for text in parsed.texts["caption"] if text.startswith("Time of each stage"))
    rows = {row[0]: row for row in parsed.rows(caption)}
    assert all(rows[stage][2] != "-" for stage in ("teacher", "synthesize", "distill", "images"))
    assert rows["evaluate"][2] == "-"


def test_decoding_of_images_that_do_not_fit_the_memory_counts(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.estimate._measure_codec", lambda config, images: (100.0, 0.0, 1.0))
    steps = tiny_config(finished).distill.steps
    for memory_gib, is_decoded in ((0.0, True), (1.0, False)):
        config = load_run(copy_run(finished, tmp_path / str(memory_gib), distill__memory_gib=memory_gib))
        assert (run_estimate(config)["distill_s"] >= 20 * steps) == is_decoded  # a second for each of 20 images


def test_cached_images_count_as_memory(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.estimate.peak_memory_bytes", lambda device: 1000)
    for memory_gib, num_cached in ((0.0, 0), (1.0, tiny_config(finished).synthesis.num_images)):
        config = load_run(copy_run(finished, tmp_path / str(memory_gib), distill__memory_gib=memory_gib))
        assert run_estimate(config)["peak_memory_bytes"] == 1000 + num_cached * math.prod(config.images.shape)


def test_scoring_counts(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.estimate.score", lambda *arguments: time.sleep(0.4))  # for a batch of 20
    config = load_run(copy_run(finished, tmp_path))
    assert run_estimate(config)["synthesize_s"] > 3 * 0.4


@pytest.mark.slow
def test_two_ranks_estimate_together(finished, tmp_path):
    path = copy_run(finished, tmp_path)
    assert finish(start(stage_command("estimate", path, num_processes=2))) == 0
    assert load_run(path).estimate_path.exists()
