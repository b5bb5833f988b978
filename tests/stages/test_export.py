"""The exported student: every file gives PyTorch's logits, and the model card says how to load it."""

import importlib.metadata
import json
import re
import warnings

import numpy as np
import pytest
import torch
import yaml
from tiny_run import REPOSITORY, copy_run, digests, run_in_process, tiny_config, write_round

from pipeline.data.codec import to_unit
from pipeline.data.image_sets import load_images
from pipeline.models import export as formats
from pipeline.models.model_card import ModelCard
from pipeline.run import load_run
from pipeline.session import load_student
from stages import chain, clean, export

pytestmark = pytest.mark.slow

NAMES = ["README.md", "export.json", "student.onnx", "student.pt2", "student.safetensors"]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The configuration of a run whose student is exported."""
    for name in formats.ONNX_PACKAGES:
        pytest.importorskip(name)
    config = load_run(copy_run(finished, tmp_path_factory.mktemp("exported")))
    run_in_process(export.main, config)
    return config


def folder_of(config):
    return config.checkpoints / "export"


def test_every_file_is_compared_and_timed(exported, finished, capsys):
    assert sorted(digests(folder_of(exported))) == NAMES
    record = json.loads((folder_of(exported) / "export.json").read_text())
    assert record["compared_images"] == 500
    assert list(record["files"]) == ["student.safetensors", "student.pt2", "student.onnx"]
    for file in record["files"].values():
        assert 0 <= file["max_difference"] <= 1e-5
        assert file["forward_ms"] > 0
    assert record["files"]["student.safetensors"]["max_difference"] == 0
    assert record["versions"].keys() >= {"torch", "onnx", "onnxruntime"}


def test_no_file_names_a_folder_of_the_machine(exported):
    for path in folder_of(exported).iterdir():
        assert str(REPOSITORY).encode() not in path.read_bytes(), path.name


def test_code_of_the_card_gives_the_students_logits(exported, monkeypatch):
    monkeypatch.chdir(folder_of(exported))
    images = load_images(exported.data, "test", exported.images)
    pixels = to_unit(images.batch(range(7)))
    expected = load_student(exported, 0)(pixels)
    blocks = re.findall(r"```python\n(.*?)```", (folder_of(exported) / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert len(block.splitlines()) == 3
        names = {"pixels": pixels}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export.load about a buffer that it does not write to
            exec(block, names)
        torch.testing.assert_close(torch.as_tensor(names["logits"]), expected, rtol=0, atol=1e-4)


def test_card_states_figures_classes_and_no_license(exported):
    _, header, text = (folder_of(exported) / "README.md").read_text().split("---\n", 2)
    evaluation = json.loads(exported.evaluation_path(0).read_text())
    (index,) = yaml.safe_load(header)["model-index"]
    assert yaml.safe_load(header)["license"] == "unknown"
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": evaluation["student"]["top1"]}]
    assert f"| top-1 accuracy | {evaluation['student']['top1']:.2%} | {evaluation['teacher']['top1']:.2%} |" in text
    assert "(N, 1, 8, 8), gray" in text
    assert "mean [0.3], standard deviation [0.37]" in text
    assert "| 9 | 9 |" in text
    assert "under which license" in text


def test_wrong_logits_keep_the_former_export(exported, tmp_path, monkeypatch):
    config = load_run(copy_run(exported.checkpoints.parents[1], tmp_path))
    before, load = digests(config.checkpoints), formats.load_onnx
    monkeypatch.setattr(formats, "load_onnx", lambda path: lambda pixels: load(path)(pixels) + 2e-4)
    with pytest.raises(ValueError, match=r"student\.onnx differs by 2\.0e-04 from PyTorch's logits, more than 1e-04"):
        run_in_process(export.main, config)
    assert digests(config.checkpoints) == before


def test_without_the_extra_there_is_no_onnx_file(finished, tmp_path, monkeypatch, capsys):
    config = load_run(copy_run(finished, tmp_path))
    monkeypatch.setattr(formats, "ONNX_PACKAGES", ("onnx", "absent_package_of_a_test"))
    run_in_process(export.main, config)
    assert (
        "no student.onnx without absent_package_of_a_test; pip install 'dreamdistill[onnx]'" in capsys.readouterr().out
    )
    assert "student.onnx" not in digests(folder_of(config))
    assert "onnx" not in (folder_of(config) / "README.md").read_text()


def test_versions_need_no_distribution_of_that_name(monkeypatch):
    def version(name):
        if name == "onnxruntime":  # the package onnxruntime-gpu brings the module
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    onnxruntime, real_version = pytest.importorskip("onnxruntime"), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert export._versions()["onnxruntime"] == onnxruntime.__version__


def test_full_disk_is_an_os_error(make_classifier, tmp_path):
    path = tmp_path / "student.pt2"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        formats.save_program(path, formats.trace(make_classifier().eval().cpu(), torch.zeros(2, 3, 8, 8)))


def test_color_student_is_exported(tmp_path):
    onnx = pytest.importorskip("onnx")
    pixels = torch.randint(0, 256, (80, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    np.savez(tmp_path / "images.npz", x=pixels, y=np.arange(80) % 10)
    data = {name: f"npz:{tmp_path / 'images.npz'}" for name in ("train", "test")}
    normalization = {"teacher__mean": [0.4, 0.5, 0.6], "teacher__std": [0.2, 0.25, 0.3]}
    config = tiny_config(tmp_path, images__channels=3, data=data, **normalization)
    for stage in (chain, export):
        run_in_process(stage.main, config)
    record = json.loads((folder_of(config) / "export.json").read_text())
    assert all(file["max_difference"] <= 1e-5 for file in record["files"].values())
    text = (folder_of(config) / "README.md").read_text()
    assert "(N, 3, 8, 8), RGB" in text
    assert "mean [0.4, 0.5, 0.6], standard deviation [0.2, 0.25, 0.3]" in text
    if "student.onnx" in record["files"]:
        (pixels_input,) = onnx.load(folder_of(config) / "student.onnx").graph.input
        assert [size.dim_value for size in pixels_input.type.tensor_type.shape.dim] == [0, 3, 8, 8]


CARD = {
    "plain": ({}, "inverted from the teacher, and", "No real image took part.", "the weights of the teacher, so"),
    "ensemble": (
        {"ensemble": [{"source": "cifar10:vgg11", "weights": "a/b.pt"}]},
        "inverted from the teacher and `cifar10:vgg11`, and",
        "No real image took part.",
        "the weights of the teacher and `cifar10:vgg11`, so",
    ),
    "start": (
        {"student__weights": "a/start.pt"},
        "inverted from the teacher, and",
        "It started from the weights `start.pt`; whether these have seen real images is not known here.",
        "the weights of the teacher and `start.pt`, so",
    ),
}


def card_of(exported, config):
    """The text of the card, in one line, of an export of another configuration."""
    card = ModelCard(
        name=config.name,
        classifier=load_student(exported, 0),
        images=config.student_images,
        student=config.student,
        teacher=config.teacher,
        inverted=export._inverted(config),
        test=config.data.test,
        evaluation=json.loads(exported.evaluation_path(0).read_text()),
        comparison=json.loads((folder_of(exported) / "export.json").read_text()),
    )
    return " ".join(card.text.split())


@pytest.mark.parametrize(("overrides", "images", "start", "origins"), CARD.values(), ids=CARD)
def test_card_tells_what_took_part(exported, tmp_path, overrides, images, start, origins):
    text = card_of(exported, tiny_config(tmp_path, **overrides))
    assert f"Synthetic images were {images} this student was trained on the teacher's outputs for them. {start}" in text
    assert f"This student was derived from {origins} ask before you publish it" in text


def test_titles_are_no_markup_in_the_card(exported, monkeypatch):
    student = load_student(exported, 0)
    student.class_titles = ("a | <b>", *student.class_titles[1:])
    monkeypatch.setitem(globals(), "load_student", lambda config, round_index: student)
    assert r"| 0 | a \| \<b\> | | 1 | 1 |" in card_of(exported, exported)


def test_card_names_the_teachers_of_given_sets(exported, tmp_path):
    write_round(tmp_path / "set")
    own = exported.round_folder(0)
    text = card_of(exported, tiny_config(tmp_path, distill__shards=[str(own), str(tmp_path / "set")]))
    assert "Synthetic images were inverted from `cifar10:resnet8`, and" in text
    assert "derived from the weights of the teacher and `cifar10:resnet8`, so" in text


def test_student_without_an_evaluation_is_refused(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    config.evaluation_path(0).unlink()
    with pytest.raises(ValueError, match=r"there is no evaluation of this student .*run the stage `evaluate` first"):
        run_in_process(export.main, config)


def test_clean_of_a_round_removes_the_export(exported, tmp_path):
    config = load_run(copy_run(exported.checkpoints.parents[1], tmp_path))
    assert folder_of(config).exists()
    clean.remove(config, 0)
    assert not folder_of(config).exists()
