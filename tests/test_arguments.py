"""Arguments of the Python API that are wrong are errors that name them, their value and the fix."""

import numpy as np
import pytest
import torch
from conftest import TinyClassifier

from dreamdistill import distill, evaluate, invert, load_student, synthesize
from pipeline.arguments import image_set, image_size, label_tensor, phases

SIZE = r"must be H = W, such as 32, or \(H, W\)"
PHASES = r"must be \(scale, steps\) of each phase, such as \[\(0\.5, 300\), \(1, 100\)\]"
DEVICE = "is none to compute on; use cpu, cuda or cuda:N"


@pytest.fixture
def teacher(make_classifier):
    return make_classifier().network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "8"}, r"size: expected a whole number, got '8' \(str\)"),
        ({"size": 8.5}, r"size: expected a whole number, got 8\.5 \(float\)"),
        ({"size": (8, 1)}, "size: 1 must be at least 2"),
        ({"size": (3, 8, 8)}, rf"size: \(3, 8, 8\) \(tuple\) {SIZE}"),
        (
            {"mean": [0.5, float("nan"), 0.5], "std": [1, 1, 1]},
            r"mean: \[0\.5, nan, 0\.5\] .* one number for each channel",
        ),
        ({"mean": [], "std": []}, r"mean: \[\] \(list\) must be one number for each channel"),
        ({"seed": "a"}, r"seed: expected a whole number, got 'a' \(str\)"),
        ({"seed": None}, "seed: expected a whole number, got nothing"),
        ({"seed": True}, r"seed: expected a whole number, got True \(bool\)"),
        ({"device": "foo"}, f"device: the device 'foo' {DEVICE}"),
        ({"device": torch.device("meta")}, f"device: the device 'meta' {DEVICE}"),
        ({"device": "cuda:99"}, "device: there is no device 'cuda:99'"),
        ({"device": 3.5}, r"device: expected cpu, cuda or cuda:N, got 3\.5 \(float\)"),
        ({"labels": ["a", "b"]}, r"labels: \['a', 'b'\] \(list\); give whole numbers of shape \(N,\)"),
        ({"labels": None}, "labels: nothing; give whole numbers"),
        ({"labels": [10**30]}, r"labels: \[10+\] \(list\); give whole numbers"),
        ({"labels": np.zeros(3)}, r"labels: torch.float64 \(3,\); give whole numbers"),
        ({"labels": 3}, r"labels: torch.int64 \(\); give whole numbers"),
        ({"steps": "a"}, r"steps: expected a whole number, got 'a' \(str\)"),
        ({"steps": 0}, "steps: 0 must be at least 1"),
        ({"steps": [1, 2]}, rf"steps: \[1, 2\] \(list\) {PHASES}"),
        ({"steps": [("a", 2)]}, r"steps: phases\.0\.scale: expected a finite number, got 'a' \(str\)"),
        ({"steps": [(0.5, 2)]}, "steps: phases: the last phase must have scale 1"),
        ({"ensemble": torch.nn.Identity()}, r"ensemble: expected a list of modules, got one Identity; write it as \["),
        ({"ensemble": 1}, r"ensemble: expected a list of modules, got 1 \(int\)"),
        ({"ensemble": ["a"]}, r"ensemble\.0: expected a torch\.nn\.Module, got 'a' \(str\); give the network itself"),
        ({"batch_size": "8"}, r"batch_size: expected a whole number, got '8' \(str\)"),
        ({"on_step": 3}, r"on_step: expected a function, got 3 \(int\)"),
        ({"model": TinyClassifier}, r"model: expected a torch.nn.Module, got .*; call it: TinyClassifier\(\.\.\.\)"),
        ({"model": torch.nn.Identity().state_dict()}, r"model: .* network\.load_state_dict"),
        ({"model": "resnet50"}, "model: expected a torch.nn.Module, got 'resnet50'"),
    ],
)
def test_wrong_argument_is_named_with_its_value(teacher, arguments, message):
    defaults = {"model": teacher, "labels": [0, 1, 2], "size": 8, "steps": 2}
    with pytest.raises(ValueError, match=message):
        invert(**{**defaults, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": None}, "folder: expected a path, got nothing"),
        ({"num_images": "10"}, r"num_images: expected a whole number, got '10' \(str\)"),
        ({"class_titles": "abcd"}, r"class_titles: expected a list of texts, got 'abcd' \(str\)"),
        ({"class_titles": [1, 2, 3, 4]}, r"class_titles: expected a list of texts, got \[1, 2, 3, 4\]"),
        ({"verifier": "resnet50"}, "verifier: expected a torch.nn.Module"),
        ({"teacher": None}, "teacher: expected a torch.nn.Module, got nothing"),
    ],
)
def test_wrong_argument_of_a_set_leaves_nothing(teacher, tmp_path, arguments, message):
    defaults = {"teacher": teacher, "folder": tmp_path / "set", "num_images": 8, "size": 8, "steps": 2}
    with pytest.raises(ValueError, match=message):
        synthesize(**{**defaults, **arguments})
    assert not any(tmp_path.iterdir())


def test_wrong_argument_of_the_other_names_is_named(teacher):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 2, 3]
    for call, message in (
        (lambda: distill(teacher, TinyClassifier, images, steps=2), "student: expected a torch.nn.Module"),
        (lambda: distill(None, teacher, images, steps=2), "teacher: expected a torch.nn.Module"),
        (lambda: distill(teacher, teacher, images, steps="a"), "steps: expected a whole number, got 'a'"),
        (lambda: distill(teacher, teacher, images, steps=2, on_step="print"), "on_step: expected a function"),
        (lambda: evaluate(teacher, teacher, (np.array([None]), [0])), r"images: array\(\[None\].* give uint8 pixels"),
        (lambda: evaluate(teacher, teacher, images, batch_size=0), "batch_size: 0 must be at least 1"),
        (lambda: load_student(3), r"path: expected a path, got 3 \(int\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_long_value_is_shortened():
    with pytest.raises(ValueError, match=r"^size: expected a whole number, got tensor\(.{70,80}\.\.\. \(Tensor\)$"):
        image_size(torch.rand(99))


def test_arrays_and_numbers_of_numpy_are_as_good_as_those_of_pytorch(teacher):
    settings = {"precision": "float32", "compile": False}
    images = invert(teacher, [0, 1], size=8, steps=2, seed=3, ensemble=None, device=None, **settings)
    numbers = {"size": (np.int64(8), 8), "steps": np.int64(2), "seed": np.int64(3), "batch_size": torch.tensor(2)}
    assert torch.equal(invert(teacher, np.array([0, 1]), **numbers, **settings), images)
    assert label_tensor(np.arange(6, dtype=np.uint8)[::-2]).tolist() == [5, 3, 1]
    pixels = np.broadcast_to(np.arange(8, dtype=np.uint8), (4, 3, 8, 8))  # not writable
    read = image_set((pixels, np.arange(4)))
    assert torch.equal(read.batch([1]), torch.arange(8).expand(1, 3, 8, 8).byte())
    assert read.labels.tolist() == [0, 1, 2, 3]
    assert phases(((0.5, 3), (1, 4))) == [{"scale": 0.5, "steps": 3}, {"scale": 1, "steps": 4}]
