import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_run import (
    REPOSITORY,
    FreeCoresContext,
    copy_run,
    digests,
    finish,
    kill_once,
    modification_times,
    run_in_process,
    stage_command,
    start,
    tiny_config,
    write_config,
)

from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest, verify
from pipeline.estimate import estimate as estimate_of
from pipeline.identity import CONFIG_FILE, student_identity, synthesis_identity
from pipeline.models.checkpoint import read_description, save_classifier
from pipeline.models.classifier import load_frozen
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.recorder import read_metrics
from pipeline.session import build_student, load_student, open_session
from stages import chain, clean, distill, evaluate, synthesize, teacher
from stages import verify as verify_stage

TWO_ROUNDS = {
    "synthesis__rounds": 2,
    "synthesis__batch_size": 15,
    "synthesis__inversion__terms__competition": 10.0,
    "distill__batch_size": 15,
    "distill__steps": 6,
}
# Long enough to be killed on the way: 6 batches, 60 steps of distillation.
LONGER = {
    "synthesis__batch_size": 10,
    "synthesis__inversion__phases": [{"steps": 50}],
    "distill__steps": 60,
    "distill__augment": {"jitter_px": 1, "mixup_probability": 0.5},
}
SAVED_AT_EACH_STEP = {"distill__save_every_s": 0, "distill__log_every": 1}
KILLS, KILL_SEED = 3, 1


# Runs the synthesize stage, and kills it at the n-th image that it writes into a tar.
KILL_WITHIN_WRITE = """
import os, runpy, signal, sys
from webdataset import TarWriter
write, left = TarWriter.write, [int(sys.argv.pop(1))]
def write_or_die(self, sample):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, sample)
TarWriter.write = write_or_die
runpy.run_module("stages.synthesize", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory) -> Path:
    """A folder with all outputs of two rounds, the second with competition."""
    folder = tmp_path_factory.mktemp("two_rounds")
    run_in_process(chain.main, tiny_config(folder, **TWO_ROUNDS))
    return folder


def test_the_chain_makes_every_output_and_leaves_nothing_else(finished):
    config = tiny_config(finished)
    assert {path.name for path in config.checkpoints.iterdir()} == {
        "teacher.safetensors",
        "teacher.json",
        "student-0.safetensors",
        "eval-0.json",
        "eval-0.csv",
        "metrics.jsonl",
        "report.html",
        "grid.png",
    }
    assert set(digests(config.round_folder(0))) == {
        "README.md",
        "_info.json",
        "config.yaml",
        "identity.json",
        "manifest.json",
        *(f"train/{label:04d}-00000.tar" for label in range(10)),
    }
    assert not (config.round_folder(0) / "parts").exists()


def test_the_shards_hold_the_planned_images(finished):
    config = tiny_config(finished)
    assert verify(config.round_folder(0)) == []
    images = ShardSet([config.round_folder(0)])
    assert torch.bincount(images.labels).tolist() == [6] * 10
    assert images.batch([0, 59]).shape == (2, 1, 8, 8)
    manifest = read_manifest(config.round_folder(0))
    assert manifest["fingerprint"] == fingerprint(synthesis_identity(config, 0))
    assert 0 <= manifest["scores"]["teacher_top1"] <= manifest["scores"]["teacher_top5"] <= 1


def test_the_evaluation_figures_belong_together(finished):
    config = tiny_config(finished)
    figures = json.loads(config.evaluation_path(0).read_text())
    assert figures["num_images"] == 500
    for network in ("student", "teacher"):
        confusion = torch.tensor(figures[network]["confusion"])
        assert confusion.shape == (10, 10)
        assert confusion.sum() == 500
        assert figures[network]["top1"] == pytest.approx(confusion.diagonal().sum().item() / 500)
        assert 0 <= figures[network]["top1"] <= figures[network]["top5"] <= 1
    assert figures["teacher"]["top1"] > 0.5
    assert figures["accuracy_retention"] == pytest.approx(figures["student"]["top1"] / figures["teacher"]["top1"])
    assert 0 <= figures["agreement"] <= 1
    assert figures["kl"] > 0
    trained = json.loads(config.trained_teacher_path.with_suffix(".json").read_text())
    assert trained["top1"] == figures["teacher"]["top1"]
    (row,) = csv.DictReader(config.evaluation_path(0).with_suffix(".csv").read_text().splitlines())
    assert (row["run"], row["round"], float(row["student_top1"])) == ("tiny", "0", figures["student"]["top1"])


def test_the_metrics_hold_every_stage(finished):
    lines = read_metrics(tiny_config(finished).metrics_path())
    assert [line["step"] for line in lines if line["stage"] == "teacher"][-1] == 41
    batches = [(line["batch"], line["step"]) for line in lines if line["stage"] == "synthesize"]
    assert batches == [(batch, step) for batch in range(3) for step in (0, 3)]
    assert [line["step"] for line in lines if line["stage"] == "distill"] == [0, 2]


def test_a_second_run_changes_nothing_but_the_report(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    before = modification_times(tmp_path)
    run_in_process(chain.main, config)
    changed = {name for name, time_ns in modification_times(tmp_path).items() if before.get(name) != time_ns}
    assert changed == {"checkpoints/tiny/report.html", "checkpoints/tiny/grid.png"}
    assert capsys.readouterr().out.count("up to date") == 4


def test_the_resolved_config_is_the_run_again(finished):
    config = tiny_config(finished)
    assert load_run(config.round_folder(0) / CONFIG_FILE) == config


def test_an_output_does_not_depend_on_where_it_lies(finished, tmp_path):
    config = tiny_config(tmp_path)
    run_in_process(teacher.main, config)
    run_in_process(synthesize.main, config)
    run_in_process(distill.main, config)
    made = digests(tmp_path, leave_out=[CONFIG_FILE, "metrics.jsonl", "teacher.json", "tiny.yaml"])
    there = digests(finished)
    assert len(made) == 16
    assert {name: there[name] for name in made} == made


def test_images_that_do_not_fit_the_memory_are_read_again_and_make_the_same_student(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, distill__memory_gib=0.0))
    held = config.student_path(0).read_bytes()
    config.student_path(0).unlink()
    run_in_process(distill.main, config)
    assert config.student_path(0).read_bytes() == held


def test_two_rounds_share_the_images_and_pool_them(two_rounds):
    config = tiny_config(two_rounds, **TWO_ROUNDS)
    folders = [config.round_folder(r) for r in range(2)]
    keys = [ShardSet([folder]).keys for folder in folders]
    assert [len(k) for k in keys] == [30, 30]
    assert sorted(key.split("/")[1] for key in (*keys[0], *keys[1])) == [f"{i:06d}" for i in range(60)]
    students = [read_description(config.student_path(r)) for r in range(2)]
    fingerprints = [read_manifest(folder)["fingerprint"] for folder in folders]
    assert [student["identity"]["shards"] for student in students] == fingerprints
    lines = [line for line in read_metrics(config.metrics_path()) if line["stage"] == "distill"]
    assert {line["round"]: line["step"] + 1 for line in lines} == {0: 3, 1: 6}
    assert json.loads(config.evaluation_path(1).read_text())["round"] == 1


def test_competition_acts_from_the_second_round_on(two_rounds):
    lines = read_metrics(tiny_config(two_rounds, **TWO_ROUNDS).metrics_path())
    with_competition = {line["round"]: "competition" in line for line in lines if line["stage"] == "synthesize"}
    assert with_competition == {0: False, 1: True}


def test_the_second_rounds_images_depend_on_the_student_of_the_first(two_rounds, tmp_path):
    config = tiny_config(two_rounds, **TWO_ROUNDS)
    other = tiny_config(tmp_path, **TWO_ROUNDS, distill__lr=0.01)
    other.checkpoints.mkdir(parents=True)
    shutil.copy(config.trained_teacher_path, other.trained_teacher_path)
    for stage in (synthesize, distill, synthesize):
        run_in_process(stage.main, other)
    first, second = ([read_manifest(c.round_folder(r))["fingerprint"] for c in (config, other)] for r in range(2))
    assert first[0] == first[1]
    assert second[0] != second[1]
    first, second = ([ShardSet([c.round_folder(r)]).batch(range(30)) for c in (config, other)] for r in range(2))
    assert torch.equal(*first)
    assert not torch.equal(*second)


def test_the_second_student_starts_from_the_first(two_rounds, tmp_path):
    started = []
    config = load_run(copy_run(two_rounds, tmp_path, **TWO_ROUNDS))
    config.student_path(1).unlink()

    def keep_start(state, *arguments, **keywords):
        started.append({k: v.clone() for k, v in state.classifier.network.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "train", keep_start)
        run_in_process(distill.main, config, 1)
    earlier = safetensors.torch.load_file(config.student_path(0))
    assert all(torch.equal(tensor, earlier[name]) for name, tensor in started[0].items())


def test_each_stage_takes_the_next_round_that_waits(tmp_path, finished):
    config = tiny_config(tmp_path, **TWO_ROUNDS)
    config.checkpoints.mkdir(parents=True)
    shutil.copy(finished / "checkpoints/tiny/teacher.safetensors", config.trained_teacher_path)
    for r in range(2):
        run_in_process(synthesize.main, config)
        assert [config.round_folder(i).exists() for i in range(2)] == [True, r == 1]
        run_in_process(distill.main, config)
        assert [config.student_path(i).exists() for i in range(2)] == [True, r == 1]
    run_in_process(evaluate.main, config)
    assert config.evaluation_path(1).exists()
    assert not config.evaluation_path(0).exists()


def test_a_teacher_evaluated_as_its_own_student_agrees_with_itself(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, student__options={"width": 4}))
    teacher = load_frozen(config.teacher_model, config.images, torch.device("cpu"))
    save_classifier(config.student_path(0), teacher, config.student, student_identity(config, 0))
    run_in_process(evaluate.main, config)
    figures = json.loads(config.evaluation_path(0).read_text())
    assert figures["agreement"] == figures["accuracy_retention"] == 1
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["student"]["confusion"] == figures["teacher"]["confusion"]


def test_an_evaluation_is_redone_for_another_student(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, distill__lr=0.02))
    before = json.loads(config.evaluation_path(0).read_text())
    config.student_path(0).unlink()
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    after = json.loads(config.evaluation_path(0).read_text())
    assert after["fingerprint"] != before["fingerprint"]
    assert after["student"]["nll"] != before["student"]["nll"]
    assert after["teacher"]["nll"] == before["teacher"]["nll"]


def test_verify_and_clean(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    (config.checkpoints.parent / "other").mkdir()
    run_in_process(verify_stage.main, config)
    assert "10 shards with 60 images as written" in capsys.readouterr().out
    run_in_process(clean.main, config)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.glob("*/*"))] == ["checkpoints/other"]
    run_in_process(clean.main, config)


def test_rounds_in_one_process_make_what_stages_of_their_own_make(finished, tmp_path):
    schedule = {**TWO_ROUNDS, "synthesis__rounds": 4, "distill__steps": 10}  # a batch for every few steps
    folders = [tmp_path / "chain", tmp_path / "stages"]
    configs = [load_run(copy_run(finished, folder, **schedule)) for folder in folders]
    for config in configs:
        run_in_process(clean.main, config, 0)
    run_in_process(chain.main, configs[0])
    for _ in range(4):
        run_in_process(synthesize.main, configs[1])
        run_in_process(distill.main, configs[1])
    made = [digests(folder, leave_out=[CONFIG_FILE, "tiny.yaml", "metrics.jsonl"]) for folder in folders]
    assert len({config.student_path(3).read_bytes() for config in configs}) == 1
    assert {name: made[0][name] for name in made[1]} == made[1]


def test_clean_of_one_round_keeps_the_others(two_rounds, tmp_path):
    config = load_run(copy_run(two_rounds, tmp_path, **TWO_ROUNDS))
    run_in_process(clean.main, config, 1)
    assert [config.round_folder(r).exists() for r in range(2)] == [True, False]
    assert [config.student_path(r).exists() for r in range(2)] == [True, False]
    run_in_process(chain.main, config)
    assert digests(config.round_folder(1), leave_out=[CONFIG_FILE]) == digests(
        tiny_config(two_rounds, **TWO_ROUNDS).round_folder(1), leave_out=[CONFIG_FILE]
    )


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Path:
    """The longer run's shards and student, made by one worker in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    path = prepare_longer(finished, folder)
    assert finish(start(stage_command("synthesize", path))) == 0
    assert finish(start(stage_command("distill", path))) == 0
    return folder


def prepare_longer(finished: Path, folder: Path, **overrides) -> Path:
    path = write_config(folder, **{**LONGER, **overrides})
    checkpoints = load_run(path).checkpoints
    checkpoints.mkdir(parents=True)
    shutil.copy(finished / "checkpoints/tiny/teacher.safetensors", checkpoints)
    return path


def test_three_workers_make_the_same_bytes_as_one(finished, uninterrupted, tmp_path):
    path = prepare_longer(finished, tmp_path)
    assert finish(start(stage_command("synthesize", path, num_processes=3))) == 0
    assert digests(tmp_path / "shards", leave_out=[CONFIG_FILE]) == digests(
        uninterrupted / "shards", leave_out=[CONFIG_FILE]
    )
    by_worker = [{line["batch"] for line in read_metrics(load_run(path).metrics_path(rank))} for rank in range(3)]
    assert by_worker == [{0, 3}, {1, 4}, {2, 5}]


def test_two_workers_distil_one_student_also_when_they_are_killed(finished, uninterrupted, tmp_path):
    students = []
    for name in ("whole", "killed"):
        path = copy_run(uninterrupted, tmp_path / name, **LONGER, **SAVED_AT_EACH_STEP)
        student = load_run(path).student_path(0)
        student.unlink()
        if name == "killed":
            process = start(stage_command("distill", path, num_processes=2))
            assert kill_once(process, student.with_suffix(".state").exists, 0.05)
        assert finish(start(stage_command("distill", path, num_processes=2))) == 0
        students.append(safetensors.torch.load_file(student))
    assert all(torch.equal(tensor, students[1][name]) for name, tensor in students[0].items())
    assert all(torch.isfinite(tensor).all() for tensor in students[0].values())
    assert {line["step"] for line in read_metrics(load_run(path).metrics_path())} >= {0, 59}


def synthesize_as(context: DistributedContext, config: RunConfig) -> None:
    with open_session(config, context) as session:
        synthesize.main(session)


def test_batches_stored_beside_the_next_inversion_are_the_same(finished, uninterrupted, tmp_path):
    config = load_run(prepare_longer(finished, tmp_path))
    synthesize_as(FreeCoresContext(), config)
    stored, expected = (
        digests(place, leave_out=[CONFIG_FILE]) for place in (config.round_folder(0), uninterrupted / "shards/tiny/0")
    )
    assert stored == expected


@dataclass(frozen=True, kw_only=True)
class ThreadWorld(DistributedContext):
    """A worker that is a thread of this process."""

    meeting: threading.Barrier
    given: list[object]

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)

    def broadcast(self, value: Any) -> Any:
        if self.is_main_process:
            self.given.append(value)
        self.barrier()
        return self.given[-1]


def test_any_number_of_workers_makes_the_same_parts(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "remove_parts", lambda folder: None)
    made = []
    for size in (1, 3, 7):
        config = load_run(prepare_longer(finished, tmp_path / str(size), synthesis__inversion__phases=[{"steps": 4}]))
        meeting, given = threading.Barrier(size), []
        workers = [ThreadWorld(rank=rank, size=size, meeting=meeting, given=given) for rank in range(size)]
        with ThreadPoolExecutor(size) as pool:
            list(pool.map(lambda context, config=config: synthesize_as(context, config), workers))
        made.append(digests(config.round_folder(0), leave_out=[CONFIG_FILE]))
    assert [f"parts/{index:06d}.tar" in made[0] for index in range(6)] == [True] * 6
    assert made[0] == made[1] == made[2]


def test_synthesis_killed_at_any_point_ends_with_the_same_bytes(finished, uninterrupted, tmp_path):
    path = prepare_longer(finished, tmp_path)
    folder, draws = load_run(path).round_folder(0), random.Random(KILL_SEED)

    def num_parts() -> int:
        return len(list((folder / "parts").glob("*.tar")))

    def kill_within_write(count: int) -> None:
        command = stage_command("synthesize", path)
        code = [sys.executable, "-c", KILL_WITHIN_WRITE, str(count)]
        assert finish(start([*code, *command[3:]])) == -signal.SIGKILL

    kill_within_write(draws.randrange(11, 20))
    assert num_parts() == 1
    for _ in range(2):
        before = num_parts()
        kill_once(
            start(stage_command("synthesize", path)),
            lambda before=before: num_parts() > before,
            draws.uniform(0, 0.1),
        )
    kill_within_write(60 - 10 * num_parts() + draws.randrange(5, 55))
    assert num_parts() == 6
    assert not (folder / "manifest.json").exists()
    assert finish(start(stage_command("synthesize", path))) == 0
    assert digests(folder, leave_out=[CONFIG_FILE]) == digests(uninterrupted / "shards/tiny/0", leave_out=[CONFIG_FILE])


def test_distillation_killed_at_any_point_ends_with_the_same_student(finished, uninterrupted, tmp_path):
    path = prepare_longer(finished, tmp_path, **SAVED_AT_EACH_STEP)
    shutil.copytree(uninterrupted / "shards", tmp_path / "shards")
    config, delays = load_run(path), random.Random(KILL_SEED)
    state_path = config.student_path(0).with_suffix(".state")
    steps = []
    for _ in range(KILLS):
        before = modification_times(config.checkpoints).get(state_path.name)
        kill_once(
            start(stage_command("distill", path)),
            lambda before=before: modification_times(config.checkpoints).get(state_path.name) != before,
            delays.uniform(0, 0.2),
        )
        if state_path.exists():
            steps.append(torch.load(state_path, weights_only=True)["step"])
    assert any(0 < step < 60 for step in steps)
    assert steps == sorted(set(steps))
    assert finish(start(stage_command("distill", path))) == 0
    resumed = safetensors.torch.load_file(config.student_path(0))
    straight = safetensors.torch.load_file(uninterrupted / "checkpoints/tiny/student-0.safetensors")
    assert resumed.keys() == straight.keys()
    assert [name for name in straight if not torch.equal(resumed[name], straight[name])] == []
    assert not state_path.exists()


def make_commands(target: str, **variables: str) -> list[str]:
    """What `make` would run for a target, whatever variables a make around the tests was given."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "CONFIG", "SET", "ROUND", "NPROC")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    arguments = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", "-n", target, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("stage", ["teacher", "synthesize", "distill", "evaluate", "report", "verify", "clean"])
def test_every_stage_is_a_make_target(stage):
    assert make_commands(stage, PYTHON="python3") == [f"python3 -m stages.{stage} --config configs/digits.yaml"]


def test_make_alone_runs_the_chain():
    assert make_commands("all", PYTHON="python3") == ["python3 -m stages.chain --config configs/digits.yaml"]


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"CONFIG": "configs/x.yaml"}, "p -m stages.synthesize --config configs/x.yaml"),
        (
            {"SET": "seed=1 distill.steps=10"},
            "p -m stages.synthesize --config configs/digits.yaml --set seed=1 distill.steps=10",
        ),
        ({"ROUND": "0"}, "p -m stages.synthesize --config configs/digits.yaml --round 0"),
        ({"NPROC": "1"}, "p -m stages.synthesize --config configs/digits.yaml"),
        (
            {"NPROC": "4", "ROUND": "2", "SET": "seed=1"},
            "p -m stages.launch 4 synthesize --config configs/digits.yaml --set seed=1 --round 2",
        ),
    ],
)
def test_make_variables_reach_the_command(variables, command):
    assert make_commands("synthesize", PYTHON="p", **variables) == [command]


def test_make_prepares_an_environment_only_without_python():
    assert "venv" not in " ".join(make_commands("test", PYTHON="p"))
    assert make_commands("test")[-1] == ".venv/bin/python -m pytest"


def test_a_state_left_by_a_kill_after_the_student_is_removed(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    state = config.student_path(0).with_suffix(".state")
    state.write_bytes(b"left over")
    run_in_process(distill.main, config)
    assert not state.exists()


def test_a_student_keeps_the_normalization_it_was_trained_with(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    description = read_description(config.student_path(0))
    teacher = load_frozen(config.teacher_model, config.images, torch.device("cpu"))
    assert load_student(config, 0).normalization == teacher.normalization
    assert description["mean"] == pytest.approx([0.3])
    own = replace(config, student=replace(config.student, mean=(0.1,), std=(0.5,)))
    student = build_student(own, teacher.normalization)
    save_classifier(config.student_path(0), student, config.student, {})
    assert load_student(config, 0).normalization == student.normalization


def test_another_set_of_a_hundred_classes_works_by_configuration_alone(tmp_path):
    labels = np.arange(200) % 100
    pixels = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "hundred.npz", x=pixels, y=labels)
    config = tiny_config(
        tmp_path,
        images={"channels": 3, "height": 16, "width": 16, "num_classes": 100},
        data={"train": f"npz:{tmp_path}/hundred.npz", "test": f"npz:{tmp_path}/hundred.npz"},
        teacher={"source": "cifar10:wrn16_1"},
        student={"source": "cifar10:resnet8", "options": {"width": 4}},
        synthesis__num_images=250,
        synthesis__batch_size=125,
        synthesis__inversion__flip=True,
    )
    run_in_process(chain.main, config)
    images = ShardSet([config.round_folder(0)])
    assert torch.bincount(images.labels, minlength=100).unique().tolist() == [2, 3]
    assert images[0][0].shape == (3, 16, 16)
    figures = json.loads(config.evaluation_path(0).read_text())
    assert len(figures["student"]["per_class_top1"]) == 100
    assert (config.checkpoints / "report.html").exists()


def test_a_student_made_again_in_one_session_starts_untrained(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    path, made = config.student_path(0), []
    with open_session(config, DistributedContext()) as session:
        estimate_of(session)
        for _ in range(2):
            path.unlink()
            distill.main(session, 0)
            made.append(path.read_bytes())
    assert made == [(finished / "checkpoints/tiny/student-0.safetensors").read_bytes()] * 2


def test_a_session_reads_the_manifest_of_a_round_no_more_often_for_more_rounds(finished, tmp_path, monkeypatch):
    schedule = {**TWO_ROUNDS, "synthesis__rounds": 4, "distill__steps": 8}
    config = load_run(copy_run(finished, tmp_path, **schedule))
    run_in_process(clean.main, config, 0)
    counts = Counter()

    def count(folder):
        counts[folder.name] += 1
        return read_manifest(folder)

    for module in ("pipeline.session", "pipeline.data.shard_set", "pipeline.data.shards"):
        monkeypatch.setattr(f"{module}.read_manifest", count)
    with open_session(config, DistributedContext()) as session:
        for r in range(4):
            synthesize.main(session, r)
            distill.main(session, r)
    assert sorted(counts) == ["0", "1", "2", "3"]
    assert max(counts.values()) <= 4, counts  # for the check, the hashes, the pool, and the images that are held
