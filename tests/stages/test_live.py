"""What a run shows while it works: the sink of docs/live.md, TensorBoard, and pictures that cannot be written."""

import shutil
import sys
import time
from contextlib import nullcontext
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import REPOSITORY, TWO_ROUNDS, copy_run, digests, run_in_process, tiny_config, write_config

from pipeline.data.shards import read_manifest
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.session import open_session
from stages import chain, clean, distill, evaluate, synthesize

# The logging steps of `TWO_ROUNDS`: first and last of each of 4 batches of 4 steps, and of distillation in 3 + 3 steps.
SYNTHESIS_STEPS, DISTILLATION_STEPS = [0, 3, 4, 7, 8, 11, 12, 15], [0, 2, 5]


class FakeRun:
    """A run of Weights & Biases that remembers what it gets."""

    def __init__(self, **arguments) -> None:
        self.arguments, self.logged, self.metrics = arguments, [], {}
        self.summary, self.num_finished = {}, 0

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.num_finished += 1


@pytest.fixture
def fake_runs(monkeypatch):
    """The runs that were started with a fake of the package wandb."""
    runs, wandb = [], ModuleType("wandb")
    wandb.init = lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1]
    wandb.Image = lambda pixels: pixels.shape
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return runs


def test_the_sink_of_the_docs_gets_the_whole_run(tmp_path, fake_runs, teacher_weights):
    _, _, rest = (REPOSITORY / "docs" / "live.md").read_text().partition("```python\n")
    (tmp_path / "wandb_sink.py").write_text(rest.partition("```")[0])
    config = tiny_config(tmp_path, **TWO_ROUNDS, sinks=[f"python:{tmp_path}/wandb_sink.py:Wandb"])
    run_in_process(chain.main, config)
    (run,) = fake_runs  # one for all stages and rounds
    assert (run.arguments["id"], run.arguments["config"]["distill"]["steps"]) == ("tiny", 6)
    assert run.metrics == {"*": "step"}
    steps = {
        stage: [values["step"] for values in run.logged if metric in values]
        for stage, metric in (
            ("teacher", "teacher/loss"),
            ("synthesize", "synthesize/classification"),
            ("distill", "distill/loss"),
            ("evaluate", "evaluate/student_top1"),
        )
    }
    assert steps == {
        "teacher": [0, 20, 40, 41],
        "synthesize": SYNTHESIS_STEPS,
        "distill": DISTILLATION_STEPS,
        "evaluate": [6],
    }
    grids = {name: values["step"] for values in run.logged for name in values if name.startswith("grid-")}
    assert grids == {"grid-0": 8, "grid-1": 16}
    assert 0 <= run.summary["student_top1"] <= 1
    assert run.num_finished == 1


def scalar_steps(config, stage: str, tag: str) -> list[int]:
    events = EventAccumulator(str(config.checkpoints / "tensorboard" / stage), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(f"{stage}/{tag}")]


def test_tensorboard_of_a_run_in_two_starts_has_one_axis(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, **TWO_ROUNDS, sinks=["tensorboard"]))
    run_in_process(clean.remove, config, 0)
    for stage in (synthesize, distill):
        run_in_process(stage.main, config)
    time.sleep(1)  # TensorBoard reads its files by name, which have the second of their start
    for stage in (synthesize, distill, evaluate):
        run_in_process(stage.main, config)
    assert scalar_steps(config, "synthesize", "classification") == SYNTHESIS_STEPS
    assert scalar_steps(config, "distill", "loss") == DISTILLATION_STEPS
    assert scalar_steps(config, "evaluate", "student_top1") == [6]
    run_in_process(clean.remove, config)
    assert not config.checkpoints.exists()


def test_sinks_change_no_output(finished, tmp_path):
    outputs = {}
    for sinks in ([], ["tensorboard"]):
        config = load_run(copy_run(finished, tmp_path / str(len(sinks)), sinks=sinks))
        shutil.rmtree(config.shards)
        config.student_path(0).unlink()
        run_in_process(chain.main, config)
        assert (config.checkpoints / "tensorboard" / "distill").exists() == bool(sinks)
        outputs[len(sinks)] = digests(config.shards, exclude=["config.yaml"]), config.student_path(0).read_bytes()
    assert outputs[0] == outputs[1]


def test_the_bar_of_a_round_is_that_of_its_steps(finished, tmp_path, monkeypatch):
    """In two rounds of three steps; sinks get the steps of the whole training."""
    bars = []

    def open_bar(title, total, unit, done):
        bars.append((title, total, done, []))
        return nullcontext(bars[-1][-1].append)

    monkeypatch.setattr("pipeline.runtime.recorder.open_bar", open_bar)
    config = load_run(copy_run(finished, tmp_path, **TWO_ROUNDS))
    run_in_process(clean.remove, config, 0)
    for r in range(2):
        run_in_process(synthesize.main, config, r)
        run_in_process(distill.main, config, r)
    assert [bar for bar in bars if bar[0].startswith("distill")] == [
        ("distill round 0", 3, 0, [1, 3]),
        ("distill round 1", 3, 0, [3]),
    ]


def test_only_rank_zero_has_sinks(tmp_path):
    config = tiny_config(tmp_path, sinks=["python:absent.py:Sink"])
    with open_session(config, DistributedContext(rank=1, size=2)) as session:
        session.sinks.figures({})
    with pytest.raises(ValueError, match="no such file"), open_session(config, DistributedContext(rank=0, size=2)):
        pass


@pytest.mark.parametrize("stage", [chain, synthesize])
def test_missing_tensorboard_is_an_error_before_any_work(error_of, tmp_path, monkeypatch, stage):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    path = write_config(tmp_path, sinks=["tensorboard"])
    assert "tensorboard needs the tensorboard package: pip install tensorboard" in error_of(stage, path)
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_pictures_are_warned_of_and_the_run_continues(finished, tmp_path):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    shutil.rmtree(config.shards)
    for name in ("preview.png", "evolution-0.png", "grid-0.png"):
        (config.checkpoints / name).unlink(missing_ok=True)
        (config.checkpoints / name).mkdir()
    with pytest.warns(UserWarning) as warnings:
        run_in_process(synthesize.main, config)
    messages = {str(warning.message) for warning in warnings}
    assert len(messages) == 3
    assert all(message.endswith("; the run continues without this picture") for message in messages)
    assert config.round_folder(0).joinpath("manifest.json").exists()


def test_a_grid_that_was_removed_is_drawn_again(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    path = config.checkpoints / "grid-0.png"
    former = path.read_bytes()
    path.unlink()
    run_in_process(synthesize.main, config)
    assert path.read_bytes() == former


def test_the_grid_of_the_smaller_set_does_not_outlive_a_kill(finished, tmp_path, monkeypatch):
    def kill(*arguments):
        raise KeyboardInterrupt

    config = load_run(copy_run(finished, tmp_path, synthesis__num_images=97))
    path = config.checkpoints / "grid-0.png"
    former = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesize, "draw_grid", kill)
        run_in_process(synthesize.main, config)
    assert read_manifest(config.round_folder(0))["num_images"] == 97
    run_in_process(synthesize.main, config)
    assert path.read_bytes() != former
