"""Broken set-ups, each named by the doctor while the other checks go on; and right ones without a false alarm."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_run import TWO_ROUNDS, copy_run, digests, run_in_process, tiny_config, with_weights

from pipeline.data.image_sets import DataConfig, load_images
from pipeline.doctor import cost, machine
from pipeline.doctor.examination import Examination
from pipeline.doctor.examine import CHECKS, examine
from pipeline.doctor.findings import Finding
from pipeline.doctor.images import check_test_images
from pipeline.doctor.outputs import check_object_store
from pipeline.models.config import ImageConfig, ModelConfig
from pipeline.models.sources import build_network
from pipeline.resolve import with_growth
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.transfers import StoreError
from stages import synthesize

# A network without BatchNorm, one without its statistics, and one that cannot be built.
NETWORKS = """
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))

def without_statistics():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 10))

def broken():
    raise KeyError("depth")
"""
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _few_timed_pixels(monkeypatch):
    monkeypatch.setattr(cost, "TIMED_PIXELS", 2**10)


def findings_of(config: RunConfig) -> list[Finding]:
    return list(examine(config, DistributedContext()))


def problems_of(config: RunConfig) -> list[str]:
    """The lines of all problems; the checks after them must have run, too."""
    findings = findings_of(config)
    assert {"device", "test images", "estimate"} <= {finding.subject for finding in findings}
    return [finding.line() for finding in findings if finding.status == "problem"]


def write_npz(path: Path, x: np.ndarray, y: np.ndarray) -> str:
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def write_network(folder: Path, function: str) -> dict[str, str]:
    (folder / "networks.py").write_text(NETWORKS)
    return {
        "teacher": {"source": f"python:{folder / 'networks.py'}:{function}", "weights": str(folder / "w.safetensors")}
    }


def test_new_run_has_no_finding_but_ok_and_writes_nothing(tmp_path):
    findings = findings_of(tiny_config(tmp_path))
    assert [finding.line() for finding in findings if finding.status != "ok"] == []
    assert list(digests(tmp_path)) == ["tiny.yaml"]


def test_finished_run_has_no_finding_but_ok(finished, tmp_path):
    findings = findings_of(load_run(copy_run(finished, tmp_path)))
    assert [finding.line() for finding in findings if finding.status != "ok"] == []
    lines = [finding.line() for finding in findings]
    assert any("normalization  teacher: the first BatchNorm layer differs by" in line for line in lines)
    assert any("accuracy       teacher: top-1" in line for line in lines)


AUTO = {
    f"{section}__{key}": "auto"
    for section in ("teacher_training", "synthesis__inversion", "distill")
    for key in ("precision", "compile")
}


def test_finished_run_with_auto_has_no_finding_but_ok(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.acceleration.multiplies_bfloat16", lambda device: False)
    findings = findings_of(load_run(copy_run(finished, tmp_path, **AUTO)))
    assert [finding.line() for finding in findings if finding.status != "ok"] == []


def test_set_that_grows_has_no_finding_but_ok_and_needs_disk(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, synthesis__num_images=97))
    config.student_path(0).unlink()
    findings = findings_of(config)
    assert [finding.line() for finding in findings if finding.status != "ok"] == []
    assert any(finding.text == "97 are synthesized, 60 before the set grew" for finding in findings)
    run_in_process(synthesize.main, config)
    assert machine._missing_sets(Examination(config=with_growth(config))) == []
    assert [finding.line() for finding in findings_of(config) if finding.status != "ok"] == []


def test_set_that_cannot_grow_is_told(finished, tmp_path):
    (line,) = problems_of(load_run(copy_run(finished, tmp_path, synthesis__num_images=69)))
    assert line.startswith("problem  images         synthesis.num_images: 69 adds 9 images to a set of 60; their")


def test_damaged_manifest_is_told_once(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    for path in config.round_folder(0).glob("manifest*.json"):
        path.write_text("{}")
    (line,) = problems_of(config)
    assert line.startswith(f"problem  images         {config.round_folder(0)}/manifest.json is damaged")


def test_damaged_student_is_told(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    config.student_path(0).write_bytes(b"0")
    (line,) = problems_of(config)
    assert line.startswith(f"problem  outputs        {config.student_path(0)} is truncated")


def given(folder: Path, weights: Path, *sets: Path | str, **overrides) -> RunConfig:
    return tiny_config(folder, **with_weights(weights, distill__shards=list(map(str, sets)), **overrides))


def test_sets_of_distill_shards_are_checked(finished, tmp_path, teacher_weights):
    existing = finished / "shards/tiny/0"
    findings = findings_of(given(tmp_path, teacher_weights, existing))
    assert [finding.line() for finding in findings if finding.status != "ok"] == []
    assert any(finding.line() == f"ok       images         of {existing}, which fit the run" for finding in findings)
    assert not any("synthesis" in finding.text for finding in findings)
    (line,) = problems_of(given(tmp_path, teacher_weights, tmp_path / "none"))
    assert line.startswith(f"problem  images         distill.shards: {tmp_path}/none holds no manifest.json; name")
    (line,) = problems_of(given(tmp_path, teacher_weights, existing, classes=[0, 1]))
    assert "has images of classes that the run has not: 2 (2)" in line
    (line,) = problems_of(given(tmp_path, teacher_weights, existing, distill__batch_size=61))
    assert "distill.batch_size: 61 is larger than the 60 images of distill.shards" in line


def test_set_that_is_not_fetched_yet_is_a_warning_and_the_others_are_checked(finished, tmp_path, teacher_weights):
    url = "http://127.0.0.1:9/set"
    findings = findings_of(given(tmp_path, teacher_weights, url))
    (line,) = [finding.line() for finding in findings if finding.status != "ok"]
    assert line.startswith(f"warning  images         {url}: not fetched yet; the stage `distill` fetches it")
    (line,) = problems_of(given(tmp_path, teacher_weights, url, tmp_path / "none"))
    assert f"{tmp_path}/none holds no manifest.json" in line


def test_disk_is_for_what_is_to_be_made(finished, tmp_path, teacher_weights):
    def sizes_of(config: RunConfig) -> list[int]:
        return machine._missing_sets(Examination(config=with_growth(config)))

    assert sizes_of(tiny_config(tmp_path)) == [60]
    assert sizes_of(tiny_config(tmp_path, **TWO_ROUNDS)) == [30, 30]
    assert sizes_of(given(tmp_path, teacher_weights, finished / "shards/tiny/0")) == []
    assert sizes_of(load_run(copy_run(finished, tmp_path, synthesis__num_images=97))) == [37]


def test_a_teacher_to_be_trained_needs_disk(tmp_path, finished):
    (tmp_path / "new").mkdir()
    new, trained = tiny_config(tmp_path / "new"), load_run(copy_run(finished, tmp_path / "trained"))
    networks = {"teacher": SimpleNamespace(num_parameters=1000), "student": SimpleNamespace(num_parameters=10)}
    sizes = [machine._checkpoint_bytes(Examination(config=c, networks=networks)) for c in (new, trained)]
    assert sizes == [1010 * 28, 10 * 28]


def test_missing_weights(tmp_path):
    config = tiny_config(tmp_path, **with_weights(tmp_path / "no.safetensors"))
    (line,) = problems_of(config)
    assert line.startswith(
        f"problem  teacher        teacher.weights: there is no file {tmp_path}/no.safetensors; correct"
    )


def test_weights_of_another_network(tmp_path, teacher_weights):
    (line,) = problems_of(tiny_config(tmp_path, **with_weights(teacher_weights, teacher__options={"width": 8})))
    assert "does not belong to cifar10:resnet8" in line


def test_too_many_classes(tmp_path, teacher_weights):
    options = {"teacher__source": f"python:{tmp_path / 'networks.py'}:without_statistics", "images__num_classes": 12}
    write_network(tmp_path, "plain")
    config = tiny_config(tmp_path, **options, teacher__options={})
    assert "returns (1, 10) for one image, 12 classes need (1, 12); set images.num_classes" in problems_of(config)[0]


def test_network_whose_code_fails(tmp_path):
    write_network(tmp_path, "broken")
    config = tiny_config(tmp_path, student={"source": f"python:{tmp_path / 'networks.py'}:broken"})
    (line,) = problems_of(config)
    assert line.startswith("problem  student        KeyError: 'depth'; correct the code of python:")
    assert line.endswith(":broken, or student.options")


@pytest.mark.parametrize(
    ("function", "fragment"),
    [
        ("plain", "the teacher has no BatchNorm layer (and 1 layers of GroupNorm"),
        ("without_statistics", "the teacher has 1 BatchNorm layers, none with running statistics"),
    ],
)
def test_teacher_without_statistics(tmp_path, function, fragment):
    write_network(tmp_path, function)
    config = tiny_config(tmp_path, teacher__source=f"python:{tmp_path / 'networks.py'}:{function}", teacher__options={})
    (line,) = problems_of(config)
    assert f"batch norm     {fragment}" in line
    assert line.endswith("choose a teacher with BatchNorm")


def with_tensors(folder: Path, weights: Path, change) -> dict:
    """Overrides with a copy of the weights in which `change` was applied to each running variance or mean."""
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(
        {name: change(name, tensor) for name, tensor in tensors.items()}, folder / "w.safetensors"
    )
    return with_weights(folder / "w.safetensors")


def test_statistics_as_initialized(tmp_path, teacher_weights):
    def reset(name, tensor):
        return torch.full_like(tensor, float("var" in name)) if "running" in name else tensor

    lines = problems_of(tiny_config(tmp_path, **with_tensors(tmp_path, teacher_weights, reset)))
    assert any("9 still have the initial mean 0 and variance 1" in line for line in lines)


@pytest.mark.parametrize(("factor", "problem"), [(float("nan"), "not finite"), (-1.0, "negative")])
def test_statistics_that_are_not_finite_or_negative(tmp_path, teacher_weights, factor, problem):
    def spoil(name, tensor):
        return tensor * factor if name == "bn1.running_var" else tensor

    lines = problems_of(tiny_config(tmp_path, **with_tensors(tmp_path, teacher_weights, spoil)))
    assert any(problem in line for line in lines)


def test_dead_channels_are_counted_and_warned_of(tmp_path, teacher_weights):
    def kill(name, tensor):
        return tensor * 0 if name.startswith("layer3.0.bn") and "var" in name else tensor

    config = tiny_config(tmp_path, **with_tensors(tmp_path, teacher_weights, kill))
    (line,) = [finding.line() for finding in findings_of(config) if finding.subject == "batch norm"]
    assert line.startswith(
        "warning  batch norm     9 layers with 84 channels, 32 of them dead; little is left to match"
    )


def test_compared_maps_are_named(tmp_path):
    assert not any(finding.subject == "features" for finding in findings_of(tiny_config(tmp_path)))
    lines = [finding.line() for finding in findings_of(tiny_config(tmp_path, distill__feature_weight=1.0))]
    compared = [f"the input of {layer} with the input of {layer}" for layer in ("layer2", "layer3")]
    expected = f"compared are, of student and teacher, {compared[0]} (8x8), {compared[1]} (4x4)"
    assert any(line.startswith("ok") and expected in line for line in lines)


def test_networks_without_maps_of_one_size(tmp_path):
    student = {"source": write_network(tmp_path, "plain")["teacher"]["source"]}
    (problem,) = problems_of(tiny_config(tmp_path, student=student, distill__feature_weight=1.0))
    assert "distill.feature_weight: the student has maps of 6x6 pixels, the teacher of 8x8, 4x4, 2x2" in problem
    assert problem.endswith("set it to 0, or choose a student with a map of one of these sizes")


def test_full_disk(tmp_path, monkeypatch):
    system = SimpleNamespace(f_bavail=2, f_frsize=512, f_files=0)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: system)
    lines = problems_of(tiny_config(tmp_path))
    assert [line.split(":")[0].split()[1:] for line in lines] == [["disk", "shards_dir"], ["disk", "checkpoints_dir"]]
    assert "1.0 KiB are free" in lines[0]
    assert "free space, or set shards_dir" in lines[0]


def test_disk_without_free_files(tmp_path, monkeypatch):
    system = SimpleNamespace(f_bavail=2**40, f_frsize=512, f_files=100, f_favail=3)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: system)
    (line,) = problems_of(tiny_config(tmp_path))
    assert "shards_dir: 3 more files fit" in line
    assert "the run makes 19" in line


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "shards").write_text("a file")
    (line,) = problems_of(tiny_config(tmp_path))
    assert f"disk           shards_dir: cannot write to {tmp_path}/shards (Not a directory)" in line


def test_object_store_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.transfers.PAUSE_S", 0.0)
    (tmp_path / "file").write_text("no folder")
    config, unusable = (tiny_config(tmp_path, object_store=f"file://{tmp_path}/{name}") for name in ("store", "file"))
    (finding,) = check_object_store(Examination(config=config))
    assert finding.status == "ok"
    assert digests(tmp_path).keys() == {"tiny.yaml", "file"}
    with pytest.raises(StoreError, match="cannot write file://"):
        list(check_object_store(Examination(config=unusable)))
    assert CHECKS["object store"] is check_object_store


def test_outputs_of_another_configuration(finished, tmp_path):
    lines = problems_of(load_run(copy_run(finished, tmp_path, seed=1)))
    assert any(line.startswith("problem  outputs ") and "seed" in line for line in lines)


def test_missing_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.acceleration.why_not_compiled", lambda device: "there is none; install g++")
    (line,) = problems_of(tiny_config(tmp_path, distill__compile=True))
    assert line == (
        "problem  compiler       distill.compile: true, but there is none; install g++, or set it to auto or false"
    )


def test_compiler_that_would_pay(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.acceleration.why_not_compiled", lambda device: "install g++")
    config = tiny_config(tmp_path, distill__compile="auto", distill__steps=10**6)
    (line,) = [finding.line() for finding in findings_of(config) if finding.status != "ok"]
    assert line.startswith("warning  compiler       compile: auto is false here")


def test_precision_without_hardware(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.acceleration.multiplies_bfloat16", lambda device: False)
    config = tiny_config(tmp_path, distill__precision="bfloat16")
    (line,) = [finding.line() for finding in findings_of(config) if finding.status != "ok"]
    assert line.startswith("warning  precision      distill.precision: bfloat16, but")


def test_too_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "free_memory_bytes", lambda device: 1000)
    (line,) = problems_of(tiny_config(tmp_path))
    assert "free memory; lower synthesis.batch_size" in line


def test_missing_test_images(tmp_path):
    config = tiny_config(tmp_path, data__test="npz:no.npz")
    findings = findings_of(config)
    assert [f.line() for f in findings if f.status == "problem"] == [
        "problem  test images    npz:no.npz: there is no such file; correct the path"
    ]
    assert [f.subject for f in findings if f.status == "warning"] == ["accuracy"]


DIGITS = ImageConfig(channels=1, height=8, width=8, num_classes=10)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "fragment"),
    [
        (
            IMAGES[:, :7],
            np.arange(40) % 10,
            "holds images of (C, H, W) = (1, 7, 8), the `images` section says (1, 8, 8)",
        ),
        (IMAGES, np.arange(40) % 11, "holds label 10, images.num_classes=10 allows 0 to 9"),
        (IMAGES // 128, np.arange(40) % 10, "but the brightest pixel is 1; store pixels as 0 to 255"),
    ],
)
def test_test_images_that_do_not_fit(tmp_path, x, y, fragment):
    (line,) = problems_of(tiny_config(tmp_path, data__test=write_npz(tmp_path / "x.npz", x, y)))
    assert line.startswith("problem  test images ")
    assert fragment in line


def test_class_names_that_do_not_fit(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    lines = problems_of(tiny_config(tmp_path, data__class_names=str(tmp_path / "names.txt")))
    assert any("3 different names on 3 lines, images.num_classes=10 needs as many of each" in line for line in lines)


def test_a_class_without_test_images(tmp_path):
    """The warning of the run is shown as it is."""
    test = write_npz(tmp_path / "x.npz", IMAGES, np.arange(40) % 3)
    config = tiny_config(tmp_path, data__test=test, classes=[0, 1, 5])
    findings = list(check_test_images(Examination(config=config, context=DistributedContext())))
    assert [finding.status for finding in findings] == ["warning", "ok"]
    assert findings[0].text.startswith(f"data.test: {test} holds no image of 1 of the `classes`")
    assert findings[0].text.endswith("which cannot be scored (5); add images of them, or shorten `classes`")


def test_normalization_of_other_pixels_for_a_teacher_to_train(tmp_path):
    (line,) = problems_of(tiny_config(tmp_path, teacher__mean=[78.0], teacher__std=[96.0]))
    assert "test images have mean -0.81 and standard deviation 0.00 after it" in line


def test_normalization_of_other_pixels(tmp_path, teacher_weights):
    wrong = with_weights(teacher_weights, teacher__mean=[76.5], teacher__std=[94.35])
    lines = problems_of(tiny_config(tmp_path, **wrong))
    assert lines[0].startswith("problem  normalization  teacher: top-1 is 1")
    assert "with the given mean and std, divided by 255; set teacher.mean=[0.3] and teacher.std=[0.37]" in lines[0]


def write_digits(path: Path, count: int, labels) -> str:
    """The first test digits with the labels that `labels` makes of their own."""
    images = load_images(DataConfig(test="sklearn:digits"), "test", DIGITS)
    pixels = images.batch(range(count)).permute(0, 2, 3, 1).numpy()
    return write_npz(path, pixels, labels(images.labels[:count].numpy()))


def test_labels_in_another_order(tmp_path, teacher_weights):
    source = write_digits(tmp_path / "x.npz", 500, lambda labels: (labels + 1) % 10)
    (line,) = problems_of(tiny_config(tmp_path, **with_weights(teacher_weights, data__test=source)))
    assert line.startswith("problem  accuracy       teacher: top-1 ")
    assert "if label 0 is 9, 1 is 0, 2 is 1, 3 is 2, 4 is 3 and 5 more for the network" in line


def test_labels_without_an_order(tmp_path, teacher_weights):
    source = write_digits(tmp_path / "x.npz", 80, lambda labels: np.arange(80) % 10)
    lines = problems_of(tiny_config(tmp_path, **with_weights(teacher_weights, data__test=source)))
    assert any("of 80 test images is chance, at a confidence of" in line for line in lines)


def test_verifier_without_batch_norm_is_scored_alone(tmp_path):
    source = f"python:{tmp_path / 'networks.py'}:plain"
    write_network(tmp_path, "plain")
    network, _ = build_network(ModelConfig(source=source), DIGITS)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    config = tiny_config(tmp_path, verifier={"source": source, "weights": str(tmp_path / "w.safetensors")})
    lines = [finding.line() for finding in findings_of(config) if "verifier: " in finding.text]
    assert lines[0] == "ok       normalization  verifier: has no BatchNorm layer that would tell; see its accuracy"
    assert lines[1].startswith("problem  accuracy       verifier: top-1 ")  # it is not trained


def test_student_that_cannot_inherit(tmp_path):
    config = tiny_config(tmp_path, distill__init="teacher", student={"source": "cifar10:vgg11"}, images__height=32)
    lines = [finding.line() for finding in findings_of(config) if finding.status == "problem"]
    assert any(line.startswith("problem  student        distill.init: teacher, but only") for line in lines)


def test_processes_that_cannot_share_a_batch(tmp_path):
    findings = list(examine(tiny_config(tmp_path), DistributedContext(size=3)))
    assert "processes      distill.batch_size: 20 cannot be shared by 3 processes" in findings[1].line()
    assert findings[-1].subject == "estimate"


def test_doctor_does_not_make_folders(tmp_path):
    findings_of(tiny_config(tmp_path))
    assert not (tmp_path / "shards").exists()


DATA = os.environ.get("DREAMDISTILL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DREAMDISTILL_DATA names no folder with real networks and images")


def cifar10_config(folder: Path, *settings: str) -> RunConfig:
    """A real ResNet-20 as teacher, with the real test images, but a tiny run."""
    overrides = [
        f"teacher.weights={DATA}/cifar_models/cifar10_resnet20_akamaster.safetensors",
        f"data.test=npz:{DATA}/cifar10/cifar10_test.npz",
        "verifier=null",
        *("synthesis.inversion.compile=false", "distill.compile=false"),
        *("synthesis.inversion.precision=float32", "distill.precision=float32"),
        *(f"{key}_dir={folder / key}" for key in ("shards", "checkpoints")),
    ]
    return load_run(CONFIGS / "cifar10_resnet20.yaml", [*overrides, *settings])


@needs_data
@pytest.mark.slow
def test_real_network_that_is_set_up_right(tmp_path):
    findings = findings_of(cifar10_config(tmp_path))
    assert [finding.line() for finding in findings if finding.status != "ok"] == []
    assert any("top-1 92." in finding.text for finding in findings)


WRONG_NORMALIZATIONS = {
    "no mean": ("teacher.mean=[0,0,0]", "teacher.std=[0.229,0.224,0.225]"),
    "mean 0.5 and std 0.5": ("teacher.mean=[0.5,0.5,0.5]", "teacher.std=[0.5,0.5,0.5]"),
    "none": ("teacher.mean=[0,0,0]", "teacher.std=[1,1,1]"),
    "for pixels in 0..255": ("teacher.mean=[123.7,116.3,103.5]", "teacher.std=[58.4,57.1,57.4]"),
    "to pixels in 0..255": ("teacher.mean=[0,0,0]", "teacher.std=[0.0039,0.0039,0.0039]"),
}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("settings", WRONG_NORMALIZATIONS.values(), ids=WRONG_NORMALIZATIONS)
def test_real_network_with_a_wrong_normalization(tmp_path, settings):
    (line,) = problems_of(cifar10_config(tmp_path, *settings))
    assert line.startswith("problem  normalization  teacher: top-1 is ")
    assert "set teacher.mean=[0.4914,0.4822,0.4465] and teacher.std=[0.2023,0.1994,0.201]" in line


@needs_data
@pytest.mark.slow
def test_real_network_that_reads_blue_first(tmp_path):
    path = tmp_path / "bgr.safetensors"
    tensors = safetensors.torch.load_file(f"{DATA}/cifar_models/cifar10_resnet20_akamaster.safetensors")
    safetensors.torch.save_file({**tensors, "conv1.weight": tensors["conv1.weight"].flip(1).contiguous()}, path)
    (line,) = problems_of(cifar10_config(tmp_path, f"teacher.weights={path}"))
    assert line.startswith("problem  normalization  teacher: top-1 is 84")
    assert (
        "with the given mean and std and red and blue exchanged; colors are in another order: correct the test images"
        in line
    )


@needs_data
@pytest.mark.slow
def test_real_network_with_labels_in_another_order(tmp_path):
    with np.load(f"{DATA}/cifar10/cifar10_test.npz") as arrays:
        x, y = arrays["x"][:1000], arrays["y"][:1000]
    order = np.arange(10)
    order[[3, 5]] = order[[5, 3]]
    source = write_npz(tmp_path / "swapped.npz", x, order[y])
    (line,) = problems_of(cifar10_config(tmp_path, f"data.test={source}"))
    assert line.startswith("problem  accuracy       teacher: top-1 7")
    assert "if label 3 is 5, 5 is 3 for the network; the order of the labels differs" in line


@needs_data
@pytest.mark.slow
def test_real_network_without_test_images_tells_gross_errors(tmp_path):
    right, wrong = (
        [finding for finding in findings_of(config) if finding.subject == "normalization"]
        for config in (
            cifar10_config(tmp_path, "data.test=npz:none.npz"),
            cifar10_config(tmp_path, "data.test=npz:none.npz", *WRONG_NORMALIZATIONS["none"]),
        )
    )
    assert [finding.status for finding in (*right, *wrong)] == ["ok", "problem"]
    assert "on noise, which tells gross errors only; compare with what fits noise best: teacher.mean=" in right[0].text
