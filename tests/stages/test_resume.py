"""Killed runs resume with the same bytes, and the number of processes does not change the images."""

import random
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killable import start_stage
from tiny_run import (
    FreeCoresContext,
    copy_run,
    digests,
    finish,
    modification_times,
    stage_command,
    start,
    with_weights,
    write_config,
)
from torch.distributed import HashStore

from benchmarks.sleepy_network import sleepy_teacher
from pipeline.data.shards import CONFIG_FILE
from pipeline.distillation.state import read_state
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import read_metrics
from pipeline.session import open_session
from stages import synthesize

# Long enough to be killed: 6 batches, then 60 steps of distillation.
LONGER = {
    "synthesis__batch_size": 10,
    "synthesis__inversion__phases": [{"steps": 20}],
    "distill__steps": 60,
    "distill__augment": {"crop_padding_px": 1, "mixup_probability": 0.5},
}
SAVE_AT_EACH_STEP = {"distill__save_every_s": 0, "distill__log_every": 1}
NUM_KILLS, KILL_SEED = 3, 1


def prepare(folder: Path, teacher_weights: Path, **overrides: Any) -> Path:
    """The config file of the longer run, with a trained teacher."""
    path = write_config(folder, **{**LONGER, **overrides})
    teacher = load_run(path).trained_teacher_path
    teacher.parent.mkdir(parents=True)
    shutil.copy(teacher_weights, teacher)
    return path


@pytest.fixture(scope="module")
def uninterrupted(teacher_weights, tmp_path_factory) -> Path:
    """A folder with the shards and the student of the longer run, made by one process at once."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    path = prepare(folder, teacher_weights)
    for stage in ("synthesize", "distill"):
        assert start_stage(stage, path).wait() == [0]
    return folder


def assert_same_shards(folder: Path, other: Path) -> None:
    first, second = (digests(root / "shards/tiny/0", exclude=[CONFIG_FILE]) for root in (folder, other))
    assert first == second


def assert_same_tensors(path: Path, other: Path) -> None:
    first, second = (safetensors.torch.load_file(student) for student in (path, other))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.slow
def test_synthesis_killed_anywhere_gives_the_same_bytes(teacher_weights, uninterrupted, tmp_path):
    path = prepare(tmp_path, teacher_weights)
    folder, generator = load_run(path).round_folder(0), random.Random(KILL_SEED)

    def num_parts() -> int:
        return len(list((folder / "parts").glob("*.tar")))

    def kill_while_writing(num_images: int) -> None:
        assert start_stage("synthesize", path, images_before_kill=num_images).wait() == [-signal.SIGKILL]

    kill_while_writing(generator.randrange(11, 20))  # in the second part
    assert num_parts() == 1
    for _ in range(2):
        before = num_parts()
        start_stage("synthesize", path).kill_after(
            lambda before=before: num_parts() > before, generator.uniform(0, 0.05)
        )
    kill_while_writing(60 - 10 * num_parts() + generator.randrange(5, 55))  # in a shard
    assert num_parts() == 6
    assert not (folder / "manifest.json").exists()
    assert start_stage("synthesize", path).wait() == [0]
    assert_same_shards(tmp_path, uninterrupted)


@pytest.mark.parametrize("files", [["identity.json.tmp"], ["identity.json", "config.yaml.tmp"]])
def test_synthesis_continues_after_a_kill_before_its_first_part(teacher_weights, uninterrupted, tmp_path, files):
    path = prepare(tmp_path, teacher_weights)
    folder = load_run(path).round_folder(0)
    folder.mkdir(parents=True)
    for name in files:
        shutil.copy(uninterrupted / "shards/tiny/0" / name.removesuffix(".tmp"), folder / name)
    assert start_stage("synthesize", path).wait() == [0]
    assert_same_shards(tmp_path, uninterrupted)


def test_distillation_killed_anywhere_gives_the_same_student(uninterrupted, tmp_path):
    path = copy_run(uninterrupted, tmp_path, **LONGER, **SAVE_AT_EACH_STEP)
    config, generator = load_run(path), random.Random(KILL_SEED)
    student = config.student_path(0)
    state = student.with_suffix(".state")
    student.unlink()
    steps = []
    for _ in range(NUM_KILLS):
        before = modification_times(config.checkpoints).get(state.name)
        start_stage("distill", path).kill_after(
            lambda before=before: modification_times(config.checkpoints).get(state.name) != before,
            generator.uniform(0, 0.1),
        )
        if state.exists():
            steps.append(read_state(state)["step"])
    assert any(0 < step < 60 for step in steps)
    assert steps == sorted(set(steps))
    assert start_stage("distill", path).wait() == [0]
    assert_same_tensors(student, uninterrupted / "checkpoints/tiny/student-0.safetensors")
    assert not state.exists()


@pytest.mark.slow
def test_distillation_by_two_killed_or_terminated_ranks_gives_the_same_student(uninterrupted, tmp_path):
    students = []
    for name in ("uninterrupted", "killed", "terminated"):
        path = copy_run(uninterrupted, tmp_path / name, **LONGER, **SAVE_AT_EACH_STEP)
        config, student = load_run(path), load_run(path).student_path(0)
        student.unlink()
        config.metrics_path().unlink()
        if name == "killed":
            ranks = start_stage("distill", path, num_ranks=2)
            assert ranks.kill_after(student.with_suffix(".state").exists, 0.02)
        if name == "terminated":
            write_config(tmp_path / name, **LONGER, distill__save_every_s=1e6, distill__log_every=1)
            ranks = start_stage("distill", path, num_ranks=2)
            ranks.wait_until(lambda config=config: len(read_metrics(config.metrics_path())) > 3)
            ranks.processes[1].terminate()
            assert ranks.wait() == [143, 143]
            assert 3 < read_state(student.with_suffix(".state"))["step"] < 60
        assert start_stage("distill", path, num_ranks=2).wait() == [0, 0]
        students.append(student)
    assert_same_tensors(*students[:2])
    assert_same_tensors(*students[1:])
    assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file(students[0]).values())
    metrics = [read_metrics(load_run(path).metrics_path(rank)) for rank in range(2)]
    for lines in metrics:  # each rank states its resources, rank 0 alone the figures
        assert {line["step"] for line in lines if line["stage"] == "distill" and line["cores"]} >= {0, 59}
    assert ["loss" in lines[-1] for lines in metrics] == [True, False]


def test_three_processes_make_the_same_bytes_as_one(teacher_weights, uninterrupted, tmp_path):
    path = prepare(tmp_path, teacher_weights)
    assert start_stage("synthesize", path, num_ranks=3).wait() == [0, 0, 0]
    assert_same_shards(tmp_path, uninterrupted)
    assert [path.name for path in sorted(load_run(path).checkpoints.glob("*.png"))] == ["evolution-0.png", "grid-0.png"]
    batches = [{line["batch"] for line in read_metrics(load_run(path).metrics_path(rank))} for rank in range(3)]
    assert set.union(*batches) == set(range(6))


@pytest.mark.slow
def test_batch_of_a_slow_rank_is_made_by_another(tmp_path):
    """Rank 3 takes a hundred seconds for a batch, the others one."""
    teacher = sleepy_teacher(tmp_path, pass_s=0.05, slow_rank=3, slow_pass_s=5.0)
    settings = {**LONGER, "teacher": teacher, "teacher_training": None, "synthesis__inversion__log_every": 1}
    path = write_config(tmp_path, **settings)
    assert start_stage("synthesize", path, num_ranks=4).wait() == [0] * 4
    lines = [read_metrics(load_run(path).metrics_path(rank)) for rank in range(4)]
    assert 0 < len(lines[3]) < 20, "the slow rank has begun a batch, and given it up"
    assert {line["batch"] for rank in range(3) for line in lines[rank] if line["step"] == 19} == set(range(6))
    assert start_stage("verify", path).wait() == [0]


@pytest.mark.slow
def test_launched_chain_makes_the_same_shards(teacher_weights, uninterrupted, tmp_path):
    path = prepare(tmp_path, teacher_weights, **with_weights(teacher_weights))
    assert finish(start(stage_command("run", path, num_processes=2))) == 0
    assert load_run(path).evaluation_path(0).exists()
    tars, expected = (digests(root / "shards/tiny/0/train") for root in (tmp_path, uninterrupted))
    assert tars == expected


def synthesize_as(context: DistributedContext, config: RunConfig) -> None:
    with open_session(config, context) as session:
        synthesize.main(session)


def test_storing_beside_the_next_inversion_makes_the_same_bytes(teacher_weights, uninterrupted, tmp_path):
    synthesize_as(FreeCoresContext(), load_run(prepare(tmp_path, teacher_weights)))
    assert_same_shards(tmp_path, uninterrupted)


@dataclass(frozen=True, kw_only=True)
class ThreadContext(DistributedContext):
    """A rank that is a thread of this process."""

    all_ranks: threading.Barrier
    broadcasts: list[object]

    def barrier(self, within: timedelta | None = None) -> None:
        self.all_ranks.wait(timeout=60)

    def broadcast(self, value: Any) -> Any:
        if self.is_main_process:
            self.broadcasts.append(value)
        self.barrier()
        latest = self.broadcasts[-1]
        self.barrier()  # rank 0 appends the next value only after all have read this one
        return latest


def test_any_number_of_ranks_makes_the_same_parts(teacher_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "remove_parts", lambda folder: None)
    made = []
    for size in (1, 3, 7):
        path = prepare(tmp_path / str(size), teacher_weights, synthesis__inversion__phases=[{"steps": 4}])
        config = load_run(path)
        shared = {"size": size, "all_ranks": threading.Barrier(size), "broadcasts": [], "store": HashStore()}
        contexts = [ThreadContext(rank=rank, **shared) for rank in range(size)]
        with ThreadPoolExecutor(size) as threads:
            list(threads.map(lambda context, config=config: synthesize_as(context, config), contexts))
        made.append(digests(config.round_folder(0), exclude=[CONFIG_FILE]))
    assert [f"parts/{index:06d}.tar" in made[0] for index in range(6)] == [True] * 6
    assert made[0] == made[1] == made[2]
