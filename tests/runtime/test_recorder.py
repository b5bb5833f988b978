"""Metrics are one JSON line for each logging step, readable after a kill, and go to the sinks."""

from contextlib import nullcontext

import pytest
import torch

import pipeline.runtime.recorder as recorder_module
from pipeline.runtime.digests import unseal_line
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import (
    Progress,
    StageCost,
    costs_of_stages,
    open_recorder,
    read_metrics,
    seconds_of_stages,
)

CONTEXT = DistributedContext()


def record(path, *losses, stage="distill", **place):
    """Log one line for each loss, as round 0 of a stage."""
    progress = Progress(stage=stage, total=len(losses), unit="steps", round_index=0)
    with open_recorder(path, progress, CONTEXT) as recorder:
        for step, loss in enumerate(losses):
            recorder.log(step, {"loss": loss}, **place)


def test_line_has_place_step_time_and_figures(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    record(path, 2.5, 1.5, stage="synthesize", batch=7)
    first, second = map(unseal_line, path.read_bytes().splitlines())
    assert first.pop("elapsed_s") >= 0
    assert first.pop("cores") == torch.get_num_threads()
    assert 0 < first.pop("peak_memory_bytes") <= second["peak_memory_bytes"]
    assert first == {"stage": "synthesize", "round": 0, "batch": 7, "step": 0, "loss": 2.5}
    assert (second["step"], second["loss"]) == (1, 1.5)


def test_line_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_recorder(path, Progress(stage="teacher", total=2, unit="steps"), CONTEXT) as recorder:
        recorder.log(0, {"loss": 1.0})
        (line,) = read_metrics(path)
        assert (line["stage"], line["step"]) == ("teacher", 0)
        assert "round" not in line


def test_half_written_line_is_left_out_and_then_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record(path, 3.0, 2.0)
    complete = path.read_text()
    path.write_text(complete + '{"stage": "distill", "round": 0, "st')
    with pytest.warns(UserWarning, match=f"^{path}: 1 of 3 lines are damaged; they are left out"):
        assert [line["loss"] for line in read_metrics(path)] == [3.0, 2.0]
    record(path, 6.0, 5.0, 4.0)
    assert [line["loss"] for line in read_metrics(path)] == [6.0, 5.0, 4.0]
    assert path.read_text().startswith(complete)


def test_last_line_for_a_place_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record(path, 9.0, 8.0, 7.0)
    record(path, 6.0, 5.0)
    record(path, 4.0, stage="synthesize", batch=1)
    record(path, 3.0, stage="synthesize", batch=2)
    assert [(line["stage"], line["step"], line["loss"]) for line in read_metrics(path)] == [
        ("distill", 0, 6.0),
        ("distill", 1, 5.0),
        ("distill", 2, 7.0),
        ("synthesize", 0, 4.0),
        ("synthesize", 0, 3.0),
    ]


def test_missing_file_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_seconds_are_summed_per_stage():
    lines = [{"stage": "distill", "elapsed_s": 1.5}, {"stage": "teacher", "elapsed_s": 4.0}]
    assert seconds_of_stages([*lines, lines[0]]) == {"distill": 3.0, "teacher": 4.0}


def test_cost_is_time_on_every_core_and_the_highest_peak_of_memory():
    first = {"stage": "distill", "elapsed_s": 1.5, "cores": 2, "peak_memory_bytes": 100}
    restarted = {"stage": "distill", "elapsed_s": 4.0, "cores": 1, "peak_memory_bytes": 80}
    on_gpu = {"stage": "teacher", "elapsed_s": 2.0, "gpus": 1, "peak_memory_bytes": 50}
    of_an_earlier_version = {"stage": "evaluate", "elapsed_s": 3.0}
    assert costs_of_stages([first, restarted, on_gpu, of_an_earlier_version]) == {
        "distill": StageCost(seconds=5.5, core_s=7.0, peak_memory_bytes=100),
        "teacher": StageCost(seconds=2.0, gpu_s=2.0, peak_memory_bytes=50),
        "evaluate": StageCost(seconds=3.0),
    }


def test_bar_goes_to_the_next_step_or_to_what_is_done(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(recorder_module, "open_bar", lambda *arguments: nullcontext(shown.append))
    with open_recorder(
        tmp_path / "metrics.jsonl", Progress(stage="synthesize", total=8, unit="steps"), CONTEXT
    ) as recorder:
        recorder.log(1, {})
        recorder.log(1, {}, done=6)
        recorder.advance(8)
    assert shown == [2, 6, 8]


def test_sinks_get_the_figures_with_the_step_of_the_stage(tmp_path):
    calls = []

    class Sinks:
        def scalars(self, *arguments):
            calls.append(arguments)

    progress = Progress(stage="synthesize", total=8, unit="steps", round_index=1)
    with open_recorder(tmp_path / "metrics.jsonl", progress, CONTEXT, Sinks()) as recorder:
        recorder.log(3, {"loss": 1.0})
        recorder.log(3, {"loss": 2.0}, sink_step=7, batch=1)
    assert calls == [("synthesize", 1, 3, {"loss": 1.0}), ("synthesize", 1, 7, {"loss": 2.0})]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 3]
