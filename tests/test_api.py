"""The Python API: the six names, on live modules."""

import copy
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from conftest import TinyClassifier
from tiny_run import REPOSITORY, digests
from torch import nn

import dreamdistill
from dreamdistill import ShardSet, distill, evaluate, invert, load_student, synthesize
from pipeline.data.shards import read_manifest
from pipeline.distillation.config import DistillConfig
from pipeline.keywords import DistillKeywords, InvertKeywords, SynthesisKeywords
from pipeline.models.checkpoint import save_classifier
from pipeline.models.classifier import Classifier
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.runtime.config import ConfigError
from pipeline.synthesis.config import InversionConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORMALIZATION = {"mean": MEAN, "std": STD}
PLAIN = {"precision": "float32", "compile": False}


@pytest.fixture
def teacher(make_classifier):
    """A user's module: plain, in training mode, with one frozen weight and a hook."""
    network = make_classifier().network.train()
    network.conv1.weight.requires_grad_(False)
    network.bn2.eval()
    network.fc.register_forward_hook(lambda module, inputs, output: None)
    return network


def state_of(module):
    """All that must not change: tensors, modes, gradients, hooks."""
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in module.named_modules()],
        [(p.requires_grad, p.grad is None) for p in module.parameters()],
    )


def assert_same_state(module, before):
    after = state_of(module)
    assert after[1:] == before[1:]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)


def test_import_is_lazy():
    code = "import sys, dreamdistill; dir(dreamdistill); assert not {'torch', 'pipeline'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    assert sorted(dreamdistill.__all__) == dir(dreamdistill)
    assert all(callable(getattr(dreamdistill, name)) for name in dreamdistill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'inverted'"):
        dreamdistill.inverted  # noqa: B018


@pytest.mark.parametrize("name", ["pipeline.py", "pipeline/__init__.py"])
def test_another_pipeline_is_named_and_not_run(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('the file was run')")
    code = "from dreamdistill import invert"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert f"ImportError: dreamdistill needs its own package `pipeline`, but Python finds {path} in" in process.stderr


def test_keywords_are_the_keys_of_the_configuration():
    def keys(config):
        return {field.name for field in dataclasses.fields(config)}

    assert keys(InversionConfig) - InvertKeywords.__optional_keys__ == {"phases"}
    assert keys(InversionConfig) - SynthesisKeywords.__optional_keys__ == {"phases"}
    assert keys(DistillConfig) - DistillKeywords.__optional_keys__ == {"steps", "save_every_s", "shards"}


def test_inverted_images_have_their_labels_and_leave_the_model_as_it_was(teacher, device):
    before, labels = state_of(teacher), [0, 1, 2, 3] * 3
    steps = []
    images = invert(
        teacher,
        labels,
        size=8,
        steps=200,
        batch_size=7,
        log_every=199,
        **NORMALIZATION,
        **PLAIN,
        on_step=lambda step, terms: steps.append((step, sorted(terms))),
    )
    assert images.shape == (12, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert steps == [(s, ["classification", "feature_divergence", "tv_l2"]) for s in (0, 199)] * 2
    assert_same_state(teacher, before)
    with torch.no_grad():
        logits = Classifier(copy.deepcopy(teacher), (MEAN, STD), 4).to(device).eval()(images.to(device) / 255).cpu()
    assert (logits.argmax(1) == torch.tensor(labels)).float().mean() > 0.9
    same = invert(teacher, torch.tensor(labels), size=(8, 8), steps=200, batch_size=7, **NORMALIZATION, **PLAIN)
    assert torch.equal(same, images)
    other = invert(teacher, labels, size=8, steps=200, batch_size=7, seed=1, **NORMALIZATION, **PLAIN)
    assert not torch.equal(other, images)


def test_phases_ensemble_and_classifiers(make_classifier):
    teacher, other = make_classifier(), make_classifier(seed=1)
    labels, settings = [0, 1, 2, 3], {"size": (8, 10), "steps": [(0.5, 2), (1.0, 2)], **PLAIN}
    images = invert(teacher, labels, **settings)
    assert images.shape == (4, 3, 8, 10)
    assert not torch.equal(invert(teacher, labels, ensemble=[other], **settings), images)
    plain = invert(teacher.network, labels, **NORMALIZATION, **settings)
    assert torch.equal(plain, images)
    array_settings = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD).numpy(), **settings}
    assert torch.equal(invert(teacher.network, labels, **array_settings), images)


def test_images_of_some_classes_are_those_of_all(make_classifier):
    teacher, other = make_classifier(), make_classifier(seed=1)
    settings = {"size": 8, "steps": 2, **PLAIN}
    some = [Classifier(c.network, (MEAN, STD), 4, classes=[3, 1]) for c in (teacher, other)]
    assert torch.equal(invert(some[0], [1, 0], **settings), invert(teacher, [1, 3], **settings))
    images = invert(some[0], [1, 0], ensemble=[some[1]], **settings)
    assert torch.equal(images, invert(teacher, [1, 3], ensemble=[other], **settings))
    with pytest.raises(ValueError, match=r"ensemble\.0: its 4 classes are not the 2 of the teacher"):
        invert(some[0], [1, 0], ensemble=[other], **settings)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lrr": 0.1}, r"unknown keyword lrr; did you mean lr\?"),
        ({"lr": -1.0}, r"lr: -1\.0 must be positive"),
        ({"verifier": nn.Identity()}, "unknown keyword verifier"),
        ({"mean": MEAN}, "mean, std: give both or neither"),
        ({"mean": MEAN, "std": (0.2,)}, "must be one value for each channel"),
        ({"mean": torch.zeros(1, 3, 1, 1), "std": STD}, r"mean: tensor.* must be one number for each channel"),
        ({"mean": 0.5, "std": 0.5}, r"mean: 0\.5 \(float\) must be one number for each channel"),
        ({"mean": (0.5,), "std": (0.5,)}, r"TinyClassifier cannot read images of \(C, H, W\) = \(1, 8, 8\)"),
        ({"labels": [0, 4]}, r"labels: 4 is not in 0\.\.3, the teacher's classes"),
        ({"labels": []}, "labels: there are none"),
        ({"labels": torch.zeros(3, 1, dtype=torch.long)}, r"labels: torch.int64 \(3, 1\); give whole numbers of shape"),
        ({"labels": [0.0, 1.5]}, r"labels: torch.float32 \(2,\); give whole numbers"),
        ({"terms": {"competition": 1.0}}, r"terms\.competition: needs a student of an earlier round"),
        ({"ensemble": [TinyClassifier(3, 5)]}, r"ensemble\.0: its 5 classes are not the 4 of the teacher; for some"),
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"phases": [{"steps": 3}]}, "unknown keyword phases"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, "has no BatchNorm layer"),
        ({"model": nn.Conv2d(3, 4, 3)}, r"Conv2d returns \(1, 4, 6, 6\) for one image; it must return logits"),
    ],
)
def test_what_does_not_fit_raises(teacher, keywords, message):
    arguments = {"model": teacher, "labels": [0, 1, 2], "size": 8, "steps": 2, **keywords}
    with pytest.raises(ValueError, match=message):
        invert(arguments.pop("model"), arguments.pop("labels"), **arguments)


def synthetic(teacher, folder, **keywords):
    defaults = {"num_images": 10, "size": 8, "steps": 3, "batch_size": 5, **NORMALIZATION, **PLAIN}
    return synthesize(teacher, folder, **{**defaults, **keywords})


def test_synthesized_set_is_a_round_and_is_continued(teacher, tmp_path):
    before, folder = state_of(teacher), tmp_path / "set"
    images = synthetic(teacher, folder, class_titles=["a", "b", "c", "d"], verifier=teacher)
    assert_same_state(teacher, before)
    assert isinstance(images, ShardSet)
    assert torch.bincount(images.labels).tolist() == [3, 3, 2, 2]
    manifest, made = read_manifest(folder), digests(folder)
    assert manifest["class_titles"] == ["a", "b", "c", "d"]
    assert manifest["teacher"] == "conftest.TinyClassifier"
    assert manifest["scores"]["verifier_top1"] == manifest["scores"]["teacher_top1"]
    assert len(ShardSet([str(folder)])) == 10
    synthetic(teacher, folder, verifier=teacher)
    assert digests(folder) == made
    message = r"set was made with another configuration .*seed: 0 before, 1 now.* name another folder, or remove this"
    with pytest.raises(ConfigError, match=message):
        synthetic(teacher, folder, verifier=teacher, seed=1)
    with torch.no_grad():
        teacher.fc.bias += 1
    with pytest.raises(ConfigError, match="teacher: the weights changed"):
        synthetic(teacher, folder, verifier=teacher)


def test_interrupted_set_is_continued(teacher, tmp_path, monkeypatch):
    whole = synthetic(teacher, tmp_path / "whole")
    calls = []

    def stop(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(arguments)
        return inverted(*arguments)

    inverted = dreamdistill.invert.__globals__["make_batches"].__globals__["invert_batch"]
    monkeypatch.setattr("pipeline.synthesis.batches.invert_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic(teacher, tmp_path / "set")
    monkeypatch.undo()
    images = synthetic(teacher, tmp_path / "set")
    assert torch.equal(images.batch(range(10)), whole.batch(range(10)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"class_titles": ["a"]}, "class_titles: 1 titles, the teacher has 4 classes"),
        ({"image_format": "gif"}, "image_format: 'gif' is not one of 'png'"),
        ({"on_step": print}, "unknown keyword on_step"),
    ],
)
def test_set_that_does_not_fit_raises_and_leaves_nothing(teacher, tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        synthetic(teacher, tmp_path / "set", **keywords)
    assert not (tmp_path / "set").exists()


def test_distilled_student_agrees_with_its_teacher(teacher, device):
    before = state_of(teacher)
    student = TinyClassifier(3, 4).to(device)
    pixels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = pixels, torch.zeros(64, dtype=torch.long)
    untrained = evaluate(copy.deepcopy(student), teacher, images, **NORMALIZATION)
    losses = []
    distilled = distill(
        teacher,
        student,
        images,
        steps=60,
        batch_size=32,
        log_every=59,
        **NORMALIZATION,
        **PLAIN,
        on_step=lambda step, figures: losses.append(figures["loss"]),
    )
    assert distilled.network is student
    assert not distilled.training
    torch.testing.assert_close(distilled.normalization, (MEAN, STD))
    assert losses[-1] < losses[0]
    report = evaluate(distilled, teacher, images, batch_size=10, **NORMALIZATION)
    assert report.kl < untrained.kl / 2
    assert report.num_images == 64
    assert_same_state(teacher, before)


def test_some_classes_of_a_teacher(teacher, tmp_path, device):
    restricted = Classifier(teacher, (MEAN, STD), 4, classes=[3, 1])
    images = synthetic(restricted, tmp_path / "set", num_images=6)
    assert read_manifest(tmp_path / "set")["classes"] == [3, 1]
    assert set(images.labels.tolist()) == {0, 1}
    student = distill(restricted, TinyClassifier(3, 2).to(device), images, steps=2, **PLAIN)
    assert evaluate(student, restricted, images).num_images == 6
    for verifier in (teacher, Classifier(teacher, (MEAN, STD), 4, classes=[1, 3])):
        with pytest.raises(
            ValueError, match=r"verifier: its \d classes are not the 2 of the teacher; for some outputs"
        ):
            synthetic(restricted, tmp_path / "other", verifier=verifier)
    assert not (tmp_path / "other").exists()


def test_a_student_learns_the_maps_of_a_wider_teacher_and_keeps_no_hooks(teacher, device):
    pixels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, settings = (pixels, torch.zeros(64, dtype=torch.long)), {"steps": 30, "batch_size": 32, "optimizer": "muon"}
    losses_of = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        student = TinyClassifier(3, 4, width=6).to(device)
        losses: list[float] = []
        distilled = distill(
            teacher,
            student,
            images,
            lr=0.02,
            log_every=1,
            feature_weight=weight,
            on_step=lambda step, figures, losses=losses: losses.append(figures["loss"]),
            **settings,
            **NORMALIZATION,
            **PLAIN,
        )
        losses_of[weight] = losses
        assert not any(module._forward_hooks for module in distilled.modules())
    assert losses_of[100.0][0] > losses_of[0.0][0] + 10
    assert losses_of[100.0][-1] < 0.7 * losses_of[100.0][0]


def test_distillation_of_what_does_not_fit_raises(teacher, packed_round):
    pixels, labels = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    for images, student, message in (
        ((pixels, labels), TinyClassifier(3, 4), r"give uint8 pixels"),
        ((pixels.byte(), labels[:2]), TinyClassifier(3, 4), r"labels \(2,\)"),
        ((pixels.byte(), labels + 0.5), TinyClassifier(3, 4), r"labels: torch\.float32 \(4,\); give whole numbers"),
        ((pixels.byte()[:, :1], labels), TinyClassifier(3, 4), "have 3 values, images have 1 channels"),
        (ShardSet([]), TinyClassifier(3, 4), "labels: there are none"),
        ((pixels.byte(), labels), TinyClassifier(3, 5), "the student has 5 classes, the teacher 4"),
        (ShardSet([packed_round[0]]), TinyClassifier(3, 4), r"labels: \d+ is not in 0\.\.3"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(teacher, student, images, steps=2, **NORMALIZATION)
    for images in ([pixels.byte(), labels], (pixels.byte().tolist(), labels), torch.utils.data.TensorDataset(pixels)):
        with pytest.raises(
            TypeError, match="is neither a set with `labels` and `batch`, such as a ShardSet, nor a pair"
        ):
            distill(teacher, TinyClassifier(3, 4), images, steps=2, **NORMALIZATION)
    with pytest.raises(ValueError, match="unknown keyword seed"):
        evaluate(TinyClassifier(3, 4), teacher, (pixels.byte(), labels), seed=1)


def test_a_folder_in_place_of_a_student_is_named(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file in it, such as student-0"):
        load_student(tmp_path)


def test_student_loads_without_its_architecture(finished):
    student = load_student(finished / "checkpoints" / "tiny" / "student-0.safetensors")
    assert not student.training
    assert student.class_titles == tuple(map(str, range(10)))
    assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_file_of_weights_does_not_choose_the_code_that_runs(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("from conftest import TinyClassifier\n")
    source, path = f"python:{code}:TinyClassifier", tmp_path / "x.safetensors"
    config = ModelConfig(source=source, options={"channels": 3, "num_classes": 4})
    classifier = Classifier(TinyClassifier(3, 4), (MEAN, STD), 4)
    save_classifier(path, classifier, config, ImageConfig(channels=3, height=8, width=8, num_classes=4), {})
    with pytest.raises(ValueError, match=r"x\.safetensors: its network is made by python:.*name it .*source="):
        load_student(path)
    torch.testing.assert_close(load_student(path, source=source).state_dict(), classifier.state_dict())
    code.unlink()
    with pytest.raises(ValueError, match=r"own\.py: no such file"):
        load_student(path, source=source)
