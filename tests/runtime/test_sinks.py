"""Sinks are made when there is something for them and closed at the end; pictures are files as well."""

import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.runtime.config import ConfigError
from pipeline.runtime.sinks import check_sink_names, open_sinks
from pipeline.runtime.tensorboard import TensorBoard

USER_CODE = """
CALLS = []

class Sink:
    def __init__(self, name, folder, config):
        CALLS.append(("made", name, folder.name, config))
    def scalars(self, *arguments):
        CALLS.append(("scalars", *arguments))
    def image(self, name, pixels, step):
        CALLS.append(("image", name, pixels.shape, str(pixels.dtype), step))
    def figures(self, values):
        CALLS.append(("figures", values))
    def close(self):
        CALLS.append(("closed",))

class Partial:
    def scalars(self, *arguments):
        pass
"""
PICTURE = Image.new("L", (6, 4), 200)


@pytest.fixture
def user_sink(tmp_path, monkeypatch):
    """Opens a sink of a user's file for a run in `tmp_path`; and the calls that it has had."""
    path = tmp_path / "user_sink_of_a_test.py"
    path.write_text(USER_CODE)

    @contextmanager
    def open_user_sink(name="Sink"):
        with open_sinks([f"python:{path}:{name}"], "run", tmp_path, {"seed": 1}) as sinks:
            yield sinks, sys.modules["dreamdistill_user_user_sink_of_a_test"].CALLS

    return open_user_sink


def test_a_sink_of_a_user_is_made_when_it_is_needed_and_closed_once(user_sink, tmp_path):
    with user_sink() as (sinks, calls):
        assert calls == []
        sinks.scalars("distill", 1, 7, {"loss": 0.5})
        sinks.image("preview", PICTURE, 9)
        sinks.figures({"student_top1": 0.9})
    assert calls == [
        ("made", "run", tmp_path.name, {"seed": 1}),
        ("scalars", "distill", 1, 7, {"loss": 0.5}),
        ("image", "preview", (4, 6, 3), "uint8", 9),
        ("figures", {"student_top1": 0.9}),
        ("closed",),
    ]


def test_a_sink_without_work_is_never_made(user_sink):
    with user_sink() as (_, calls):
        pass
    assert calls == []


def test_a_sink_is_closed_after_an_error(user_sink):
    with pytest.raises(KeyError), user_sink() as (sinks, calls):
        sinks.figures({})
        raise KeyError
    assert calls[-1] == ("closed",)


def test_wrong_sinks_raise_with_the_fix(user_sink):
    with pytest.raises(ConfigError, match=r"sinks: 'wandb' must be tensorboard, or python:.*docs/live\.md"):
        check_sink_names(["tensorboard", "wandb"])
    with pytest.raises(ValueError, match=r"Partial has no method 'image'; docs/live\.md"), user_sink("Partial"):
        pass
    with pytest.raises(ValueError, match="has no 'Absent'"), user_sink("Absent"):
        pass


def test_a_picture_is_a_file_of_its_name(tmp_path):
    with open_sinks([], "run", tmp_path / "run", {}) as sinks:
        sinks.image("grid-0", PICTURE, 0)
    (path,) = (tmp_path / "run").iterdir()
    assert path.name == "grid-0.png"
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(PICTURE))


def test_a_picture_that_cannot_be_written_is_warned_of_and_still_sent(user_sink, tmp_path):
    (tmp_path / "grid-0.png").mkdir()
    with user_sink() as (sinks, calls):
        with pytest.warns(UserWarning, match=r"cannot write .*grid-0\.png.*the run continues without this picture"):
            sinks.image("grid-0", PICTURE, 0)
        assert [call[0] for call in calls] == ["made", "image"]
    assert not list(tmp_path.glob("*.tmp"))


def test_live_images_take_half_a_percent_of_the_time_and_some_are_sent(user_sink, monkeypatch):
    now, drawn_at = [5.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def draw():
        drawn_at.append(now[0])
        now[0] += 0.25
        return {"preview": PICTURE}

    with user_sink() as (sinks, calls):
        while now[0] < 1000:
            sinks.live_images(draw, round(now[0]))
            now[0] += 1
    assert drawn_at[0] == 5.0
    assert all(50 <= gap < 53 for gap in np.diff(drawn_at))
    sent_at = [call[-1] for call in calls if call[0] == "image"]
    assert len(sent_at) == 4
    assert all(300 <= gap < 353 for gap in np.diff(sent_at))


def read_events(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def points_of(folder, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 3)) for event in read_events(folder).Scalars(tag)]


def test_tensorboard_has_figures_and_pictures_at_once(tmp_path):
    sink = TensorBoard("run", tmp_path, {})
    sink.scalars("distill", 0, 3, {"loss": 0.5, "lr": 0.1})
    sink.image("grid-0", np.full((4, 6, 3), 200, np.uint8), 12)
    assert points_of(tmp_path / "tensorboard" / "distill", "distill/loss") == [(3, 0.5)]
    (image,) = read_events(tmp_path / "tensorboard" / "pictures").Images("grid-0")
    assert (image.step, image.width, image.height) == (12, 6, 4)
    sink.close()


def test_tensorboard_of_a_restarted_run_continues_the_steps(tmp_path):
    for steps, loss in ((range(5), 1.0), (range(3, 7), 2.0)):
        sink = TensorBoard("run", tmp_path, {})
        for step in steps:
            sink.scalars("distill", 0, step, {"loss": loss})
        sink.scalars("synthesize", 0, 10 * steps.start, {"classification": loss})
        sink.close()
    points = points_of(tmp_path / "tensorboard" / "distill", "distill/loss")
    assert points == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    points = points_of(tmp_path / "tensorboard" / "synthesize", "synthesize/classification")
    assert points == [(0, 1.0), (30, 2.0)]


def test_evaluations_in_any_order_stay_in_tensorboard(tmp_path):
    for step in (6, 3):  # the last round, then an earlier one
        sink = TensorBoard("run", tmp_path, {})
        sink.scalars("evaluate", step // 3 - 1, step, {"student_top1": step / 10})
        sink.image("grid", np.full((4, 6, 3), 200, np.uint8), step)
        sink.close()
    folder = tmp_path / "tensorboard"
    assert sorted(points_of(folder / "evaluate", "evaluate/student_top1")) == [(3, 0.3), (6, 0.6)]
    assert sorted(image.step for image in read_events(folder / "pictures").Images("grid")) == [3, 6]


def test_tensorboard_has_the_keys_of_the_config_with_the_final_figures(tmp_path):
    config = {"seed": 3, "distill": {"lr": 0.1, "init": "random"}, "classes": None}
    sink = TensorBoard("run", tmp_path, config)
    sink.figures({"student_top1": 0.75})
    sink.close()
    events = read_events(tmp_path / "tensorboard" / "hyper-parameters")
    assert [event.value for event in events.Scalars("final/student_top1")] == [0.75]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    keys = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (keys["seed"].number_value, keys["distill.lr"].number_value) == (3, 0.1)
    assert (keys["distill.init"].string_value, keys["classes"].string_value) == ("random", "None")
