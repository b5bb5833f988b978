import io
import json
import sys

import pytest

from pipeline.runtime.recorder import open_recorder, read_metrics


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(path, *losses, stage="distill", visible=True, **place):
    with open_recorder(path, stage, total=len(losses), unit="steps", visible=visible, round_index=0) as recorder:
        for step, loss in enumerate(losses):
            recorder.log(step, {"loss": loss}, **place)


def test_lines_hold_place_step_time_and_figures(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    record(path, 2.5, 1.5, stage="synthesize", batch=7)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.pop("elapsed_s") >= 0
    assert first == {"stage": "synthesize", "round": 0, "batch": 7, "step": 0, "loss": 2.5}
    assert (second["step"], second["loss"]) == (1, 1.5)


def test_each_line_is_on_disk_before_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_recorder(path, "teacher", total=2, unit="steps") as recorder:
        recorder.log(0, {"loss": 1.0})
        assert [line["step"] for line in read_metrics(path)] == [0]


def test_the_half_line_of_a_killed_process_is_skipped_and_spoils_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record(path, 3.0, 2.0)
    complete = path.read_text()
    path.write_text(complete + '{"stage": "distill", "round": 0, "st')
    assert [line["loss"] for line in read_metrics(path)] == [3.0, 2.0]
    record(path, 6.0, 5.0, 4.0)
    assert [line["loss"] for line in read_metrics(path)] == [6.0, 5.0, 4.0]
    assert path.read_text().startswith(complete)


def test_of_lines_for_the_same_place_the_last_one_counts(tmp_path):
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


def test_a_missing_file_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("terminal", "visible", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_bar_shows_on_a_terminal_only(tmp_path, monkeypatch, terminal, visible, shown):
    screen = FakeTerminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    record(tmp_path / "metrics.jsonl", 1.0, 2.0, visible=visible)
    assert bool(screen.getvalue()) == shown
    assert ("distill 0" in screen.getvalue()) == shown
