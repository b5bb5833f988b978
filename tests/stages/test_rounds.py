"""Runs of several rounds: each adds images, continues the student, and can compete with it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import TWO_ROUNDS, copy_run, digests, run_in_process, tiny_config

from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import CONFIG_FILE, read_manifest
from pipeline.models.checkpoint import read_description
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import read_metrics
from pipeline.session import open_session
from stages import chain, clean, distill, evaluate, synthesize


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory) -> Path:
    """A folder with all outputs of two rounds; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("two_rounds")
    run_in_process(chain.main, tiny_config(folder, **TWO_ROUNDS))
    return folder


def test_rounds_share_the_images_and_the_steps(two_rounds):
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


def test_competition_starts_in_the_second_round(two_rounds):
    lines = read_metrics(tiny_config(two_rounds, **TWO_ROUNDS).metrics_path())
    has_competition = {line["round"]: "competition" in line for line in lines if line["stage"] == "synthesize"}
    assert has_competition == {0: False, 1: True}


def test_images_of_the_second_round_depend_on_the_first_student(two_rounds, tmp_path):
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


def test_second_student_starts_from_the_first(two_rounds, tmp_path, monkeypatch):
    config = load_run(copy_run(two_rounds, tmp_path, **TWO_ROUNDS))
    config.student_path(1).unlink()
    initial = {}

    def record(state, *arguments):
        initial.update({name: tensor.clone() for name, tensor in state.classifier.network.state_dict().items()})

    monkeypatch.setattr(distill, "train", record)
    run_in_process(distill.main, config, 1)
    first = safetensors.torch.load_file(config.student_path(0))
    assert initial.keys() == first.keys()
    assert all(torch.equal(tensor, first[name]) for name, tensor in initial.items())


def test_stages_without_round_run_the_next_unfinished_one(tmp_path, teacher_weights):
    config = tiny_config(tmp_path, **TWO_ROUNDS)
    config.checkpoints.mkdir(parents=True)
    shutil.copy(teacher_weights, config.trained_teacher_path)
    for r in range(2):
        run_in_process(synthesize.main, config)
        assert [config.round_folder(i).exists() for i in range(2)] == [True, r == 1]
        run_in_process(distill.main, config)
        assert [config.student_path(i).exists() for i in range(2)] == [True, r == 1]
    run_in_process(evaluate.main, config)
    assert config.evaluation_path(1).exists()
    assert not config.evaluation_path(0).exists()


def test_chain_makes_the_outputs_of_separate_stages(finished, tmp_path):
    schedule = {**TWO_ROUNDS, "synthesis__rounds": 4, "distill__steps": 10}  # rounds of 2 and of 3 steps
    folders = [tmp_path / "chain", tmp_path / "stages"]
    configs = [load_run(copy_run(finished, folder, **schedule)) for folder in folders]
    for config in configs:
        clean.remove(config, 0)
    run_in_process(chain.main, configs[0])
    for _ in range(4):
        run_in_process(synthesize.main, configs[1])
        run_in_process(distill.main, configs[1])
    by_chain, by_stages = (digests(folder, exclude=[CONFIG_FILE, "tiny.yaml", "metrics.jsonl"]) for folder in folders)
    assert len({config.student_path(3).read_bytes() for config in configs}) == 1
    assert {name: by_chain[name] for name in by_stages} == by_stages


def test_clean_of_one_round_keeps_the_other(two_rounds, tmp_path):
    config = load_run(copy_run(two_rounds, tmp_path, **TWO_ROUNDS))
    clean.remove(config, 1)
    assert [config.round_folder(r).exists() for r in range(2)] == [True, False]
    assert [config.student_path(r).exists() for r in range(2)] == [True, False]
    run_in_process(chain.main, config)
    assert digests(config.round_folder(1), exclude=[CONFIG_FILE]) == digests(
        tiny_config(two_rounds, **TWO_ROUNDS).round_folder(1), exclude=[CONFIG_FILE]
    )


def test_reads_of_a_manifest_do_not_grow_with_the_rounds(finished, tmp_path, monkeypatch):
    schedule = {**TWO_ROUNDS, "synthesis__rounds": 4, "distill__steps": 8}
    config = load_run(copy_run(finished, tmp_path, **schedule))
    clean.remove(config, 0)
    counts = Counter()

    def count(folder):
        counts[folder.name] += 1
        return read_manifest(folder)

    for module in ("pipeline.pool", "pipeline.data.shard_set", "pipeline.data.shards"):
        monkeypatch.setattr(f"{module}.read_manifest", count)
    with open_session(config, DistributedContext()) as session:
        for r in range(4):
            synthesize.main(session, r)
            distill.main(session, r)
    assert sorted(counts) == ["0", "1", "2", "3"]
    assert max(counts.values()) <= 4, counts  # for the check, the hashes, the pool, and the cached images
