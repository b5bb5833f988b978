"""The prediction of what a run takes: its arithmetic, and beside a run that was made."""

import json
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny_run import copy_run, finish, run_command, run_in_process, stage_command, start, tiny_config, write_config

from pipeline.estimate import TIMED_STEPS, _Clock, batch_that_fits
from pipeline.run import load_run
from stages import chain, clean, estimate, report, synthesize


def test_a_clock_tells_a_steady_step_from_what_the_first_steps_take_longer():
    clock = _Clock()
    taken = [9.0, *[2.0] * (2 * TIMED_STEPS - 1), 30.0, *[4.0] * (2 * TIMED_STEPS - 1)]
    clock._times = [sum(taken[:i]) for i in range(len(taken) + 1)]
    assert clock.split(0) == (2, 7)
    assert clock.split(2 * TIMED_STEPS) == (4, 26)


def test_files_and_bytes_are_those_of_the_run(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    run_in_process(estimate.main, config)
    found = json.loads(config.estimate_path.read_text())
    files = [path for path in config.round_folder(0).rglob("*") if path.is_file()]
    assert found["num_files"] == len(files)
    images = sum(path.stat().st_size for path in files if path.suffix == ".tar")
    assert 0 < found["shard_bytes"] < images  # a tar adds headers, labels and metadata
    assert all(found[key] > 0 for key in found if key != "compile_s")
    assert "synthesis " in capsys.readouterr().out


def test_an_estimate_leaves_no_state_and_changes_nothing_of_the_run(finished, tmp_path):
    config = tiny_config(tmp_path)
    run_in_process(estimate.main, config)
    assert {path.name for path in config.checkpoints.iterdir()} == {
        "estimate.json",
        "metrics.jsonl",
        "teacher.json",
        "teacher.safetensors",
    }
    run_in_process(chain.main, config)
    assert config.student_path(0).read_bytes() == tiny_config(finished).student_path(0).read_bytes()


def test_rounds_with_a_rival_are_timed_too_and_count_their_files(tmp_path):
    rounds = {"synthesis__rounds": 2, "synthesis__inversion__terms__competition": 1.0, "distill__batch_size": 15}
    config = tiny_config(tmp_path, **rounds, synthesis__batch_size=15)
    run_in_process(estimate.main, config)
    assert json.loads(config.estimate_path.read_text())["num_files"] == 2 * (10 + 5)


def test_the_report_compares_what_was_estimated_with_what_it_took(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    run_in_process(report.main, config)
    assert "estimated" not in (config.checkpoints / "report.html").read_text()
    run_in_process(estimate.main, config)
    run_in_process(report.main, config)
    page = (config.checkpoints / "report.html").read_text()
    assert "<th>estimated</th><th>taken</th>" in page
    assert "synthesize, seconds" in page
    assert page.count("images, MiB") == 1


def test_images_that_do_not_fit_the_memory_are_timed_with_their_decoding(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, distill__memory_gib=0.0))
    run_in_process(estimate.main, config)
    assert json.loads(config.estimate_path.read_text())["trained_images_per_s"] > 0


def test_the_time_of_the_judges_counts(finished, tmp_path, monkeypatch):
    config = load_run(copy_run(finished, tmp_path))
    monkeypatch.setattr("pipeline.estimate.score", lambda *arguments: time.sleep(0.4))  # for a batch of 20
    run_in_process(estimate.main, config)
    assert json.loads(config.estimate_path.read_text())["synthesize_s"] > 3 * 0.4


@pytest.mark.parametrize(("batch_size", "expected"), [(512, 170), (100, 170), (8, 170)])
def test_the_batch_that_fits_is_extrapolated_from_two_small_ones(batch_size, expected):
    assert batch_that_fits(lambda size: 1000 + 100 * size, batch_size, limit_bytes=20_000) == expected


def test_a_batch_too_large_for_the_device_is_answered_with_one_that_fits(finished, tmp_path, monkeypatch, capsys):
    path = copy_run(finished, tmp_path)
    run_in_process(clean.main, load_run(path), 0)

    images = []

    def out_of_memory(objective, labels, *arguments):
        inputs = torch.zeros(len(labels), 1, 8, 8)
        images.append(weakref.ref(inputs))
        raise torch.OutOfMemoryError

    def peak_bytes(config, objective, device, batch_size):
        assert images[0]() is None, "the batch that did not fit is still in memory"
        return 1000 + 100 * batch_size

    monkeypatch.setattr(synthesize, "invert", out_of_memory)
    monkeypatch.setattr(synthesize, "inversion_peak_bytes", peak_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2000))
    assert run_command(monkeypatch, synthesize.main, path) == 2
    assert (
        "synthesis.batch_size: 20 images at once need more than the 0.0 GiB of cpu; about 8 fit"
        in capsys.readouterr().err
    )
    assert not list(load_run(path).round_folder(0).glob("parts/*.tar"))


def test_several_workers_estimate_together(tmp_path):
    path = write_config(tmp_path)
    assert finish(start(stage_command("estimate", path, num_processes=2))) == 0
    assert tiny_config(tmp_path).estimate_path.exists()
