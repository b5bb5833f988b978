"""A whole run: its outputs, their content, and what a second run changes."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import TWO_ROUNDS, copy_run, digests, modification_times, run_in_process, tiny_config

from pipeline.data.damage import find_damage
from pipeline.data.image_sets import DataConfig, load_images
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import CONFIG_FILE, read_manifest
from pipeline.estimate import estimate as estimate_session
from pipeline.identity import student_identity
from pipeline.models.checkpoint import read_description, save_classifier
from pipeline.models.classifier import load_frozen
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.recorder import read_metrics
from pipeline.session import build_student, load_student, open_session
from stages import chain, clean, distill, evaluate, synthesize, teacher, verify

CPU = torch.device("cpu")


def test_chain_makes_every_output_and_nothing_else(finished):
    config = tiny_config(finished)
    assert {path.name for path in config.checkpoints.iterdir()} == {
        "teacher.safetensors",
        "teacher.json",
        "student-0.safetensors",
        "eval-0.json",
        "eval-0.csv",
        "metrics.jsonl",
        "report.html",
        "evolution-0.png",
        "grid-0.png",
    }
    assert set(digests(config.round_folder(0))) == {
        "README.md",
        "_info.json",
        "config.yaml",
        "identity.json",
        "manifest.json",
        "manifest.copy.json",
        *(f"train/{label:04d}-00000.tar" for label in range(10)),
    }
    assert not (config.round_folder(0) / "parts").exists()


def test_shards_hold_the_planned_images(finished):
    config = tiny_config(finished)
    assert find_damage(config.round_folder(0)) == []
    images = ShardSet([config.round_folder(0)])
    assert torch.bincount(images.labels).tolist() == [6] * 10
    assert images.batch([0, 59]).shape == (2, 1, 8, 8)
    scores = read_manifest(config.round_folder(0))["scores"]
    assert 0 <= scores["teacher_top1"] <= scores["teacher_top5"] <= 1


def test_evaluation_is_consistent(finished):
    config = tiny_config(finished)
    evaluation = json.loads(config.evaluation_path(0).read_text())
    assert evaluation["num_images"] == 500
    for network in ("student", "teacher"):
        confusion = torch.tensor(evaluation[network]["confusion"])
        assert confusion.shape == (10, 10)
        assert confusion.sum() == 500
        assert evaluation[network]["top1"] == pytest.approx(confusion.diagonal().sum().item() / 500)
        assert 0 <= evaluation[network]["top1"] <= evaluation[network]["top5"] <= 1
    student_top1, teacher_top1 = (evaluation[network]["top1"] for network in ("student", "teacher"))
    assert teacher_top1 > 0.5
    assert evaluation["accuracy_retention"] == pytest.approx(student_top1 / teacher_top1)
    assert 0 <= evaluation["agreement"] <= 1
    assert evaluation["kl"] > 0
    assert json.loads(config.trained_teacher_path.with_suffix(".json").read_text())["top1"] == teacher_top1
    (row,) = csv.DictReader(config.evaluation_path(0).with_suffix(".csv").read_text().splitlines())
    assert (row["run"], row["round"], float(row["student_top1"])) == ("tiny", "0", student_top1)


def test_metrics_have_lines_of_every_stage(finished):
    lines = read_metrics(tiny_config(finished).metrics_path())
    assert [line["step"] for line in lines if line["stage"] == "teacher"][-1] == 41
    batches = [(line["batch"], line["step"]) for line in lines if line["stage"] == "synthesize"]
    assert batches == [(batch, step) for batch in range(3) for step in (0, 3)]
    assert [line["step"] for line in lines if line["stage"] == "distill"] == [0, 2]


def test_second_run_changes_only_the_report(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    before = modification_times(tmp_path)
    run_in_process(chain.main, config)
    changed = {name for name, time_ns in modification_times(tmp_path).items() if before.get(name) != time_ns}
    assert changed == {"checkpoints/tiny/report.html"}
    assert capsys.readouterr().out.count("up to date") == 4


def test_stored_config_loads_as_the_same_run(finished):
    config = tiny_config(finished)
    assert load_run(config.round_folder(0) / CONFIG_FILE) == config


def test_outputs_do_not_depend_on_their_folder(finished, tmp_path):
    config = tiny_config(tmp_path)
    for stage in (teacher, synthesize, distill):
        run_in_process(stage.main, config)
    outputs = digests(tmp_path, exclude=[CONFIG_FILE, "metrics.jsonl", "teacher.json", "tiny.yaml"])
    expected = digests(finished)
    assert len(outputs) == 19
    assert {name: expected[name] for name in outputs} == outputs


def test_images_that_are_not_cached_make_the_same_student(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, distill__memory_gib=0.0))
    with_cache = config.student_path(0).read_bytes()
    config.student_path(0).unlink()
    run_in_process(distill.main, config)
    assert config.student_path(0).read_bytes() == with_cache


def test_teacher_as_its_own_student_agrees_with_itself(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, student__options={"width": 4}))
    network = load_frozen(config.teacher_model, config.images, CPU)
    save_classifier(config.student_path(0), network, config.student, config.student_images, student_identity(config, 0))
    run_in_process(evaluate.main, config)
    evaluation = json.loads(config.evaluation_path(0).read_text())
    assert evaluation["agreement"] == evaluation["accuracy_retention"] == 1
    assert evaluation["kl"] == pytest.approx(0, abs=1e-6)
    assert evaluation["student"]["confusion"] == evaluation["teacher"]["confusion"]


def test_another_student_is_evaluated_again(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, distill__lr=0.02))
    before = json.loads(config.evaluation_path(0).read_text())
    config.student_path(0).unlink()
    run_in_process(distill.main, config)
    run_in_process(evaluate.main, config)
    after = json.loads(config.evaluation_path(0).read_text())
    assert after["fingerprint"] != before["fingerprint"]
    assert after["student"]["nll"] != before["student"]["nll"]
    assert after["teacher"]["nll"] == before["teacher"]["nll"]


def test_verify_counts_and_clean_removes_one_run(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    (config.checkpoints.parent / "other").mkdir()
    run_in_process(verify.main, config)
    assert f"{config.round_folder(0) / 'train'}, 10 whole files" in capsys.readouterr().out
    clean.remove(config)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.glob("*/*"))] == ["checkpoints/other"]
    clean.remove(config)


def test_student_keeps_the_normalization_of_its_training(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    description = read_description(config.student_path(0))
    network = load_frozen(config.teacher_model, config.images, CPU)
    assert load_student(config, 0).normalization == network.normalization
    assert description["mean"] == pytest.approx([0.3])
    other = replace(config, student=replace(config.student, mean=(0.1,), std=(0.5,)))
    student = build_student(other, network)
    save_classifier(config.student_path(0), student, config.student, config.student_images, {})
    assert load_student(config, 0).normalization == student.normalization


def test_student_made_again_in_one_session_starts_untrained(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    path, students = config.student_path(0), []
    with open_session(config, DistributedContext()) as session:
        estimate_session(session)
        for _ in range(2):
            path.unlink()
            distill.main(session, 0)
            students.append(path.read_bytes())
    assert students == [tiny_config(finished).student_path(0).read_bytes()] * 2


def test_other_data_of_100_classes_need_only_a_config(tmp_path):
    labels = np.arange(200) % 100
    pixels = np.random.default_rng(0).integers(0, 256, (200, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "hundred.npz", x=pixels, y=labels)
    config = tiny_config(
        tmp_path,
        images={"channels": 3, "height": 12, "width": 12, "num_classes": 100},
        data={"train": f"npz:{tmp_path}/hundred.npz", "test": f"npz:{tmp_path}/hundred.npz"},
        teacher={"source": "cifar10:resnet8", "options": {"width": 8}},
        teacher_training__steps=10,
        student={"source": "cifar10:resnet8", "options": {"width": 4}},
        synthesis__num_images=250,
        synthesis__batch_size=125,
        synthesis__inversion__flip=True,
    )
    run_in_process(chain.main, config)
    images = ShardSet([config.round_folder(0)])
    assert torch.bincount(images.labels, minlength=100).unique().tolist() == [2, 3]
    assert images[0][0].shape == (3, 12, 12)
    evaluation = json.loads(config.evaluation_path(0).read_text())
    assert len(evaluation["student"]["per_class_top1"]) == 100
    assert (config.checkpoints / "report.html").exists()


def test_a_run_of_some_classes_knows_these_alone(finished, tmp_path):
    """Images, outputs of the student, test images and names are those of the classes, in their order."""
    (tmp_path / "names.txt").write_text("".join(f"{i} digit {i}\n" for i in range(10)))
    teacher_path = tiny_config(finished).trained_teacher_path
    config = tiny_config(
        tmp_path,
        **TWO_ROUNDS,
        classes=[7, "digit 1", 4],
        data__class_names=str(tmp_path / "names.txt"),
        distill__init="teacher",
        teacher__weights=str(teacher_path),
        teacher_training=None,
    )
    run_in_process(chain.main, config)
    manifest = read_manifest(config.round_folder(1))
    assert (manifest["num_classes"], manifest["classes"]) == (3, [7, 1, 4])
    assert manifest["class_titles"] == ["digit 7", "digit 1", "digit 4"]
    assert "| 0 | 7 | digit 7 |" in (config.round_folder(1) / "README.md").read_text()
    assert torch.bincount(ShardSet([config.round_folder(0)]).labels).tolist() == [10, 10, 10]
    evaluation = json.loads(config.evaluation_path(1).read_text())
    test = load_images(config.data, "test", config.images)
    assert evaluation["num_images"] == sum(int((test.labels == label).sum()) for label in (7, 1, 4))
    assert len(evaluation["student"]["confusion"]) == len(evaluation["teacher"]["confusion"]) == 3
    assert evaluation["teacher"]["top1"] > 0.8
    report = (config.checkpoints / "report.html").read_text()
    assert report.count(">digit 7</h3>") == 1
    assert report.count('<th scope="row">digit 7</th>') >= 2  # in the table of the classes and the confusion matrix
    student = load_student(config, 1)
    assert student.network.fc.out_features == 3
    assert student.class_titles == ("digit 7", "digit 1", "digit 4")
    network = load_frozen(config.teacher, config.images, CPU, config.class_labels)
    start = build_student(config, network).network
    assert torch.equal(start.fc.bias, network.network.fc.bias[[7, 1, 4]])
    again = load_images(DataConfig(test=f"shards:{config.round_folder(0)}"), "test", config.images)
    assert sorted(set(again.labels.tolist())) == [1, 4, 7]
