"""`--dry-run`: the resolved config, and every output with what exists of it; nothing is written."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import copy_run, digests, remove_manifest, run_command, write_config

from pipeline.resolve import resolve
from pipeline.run import load_run
from stages import chain, launch, synthesize


@pytest.fixture
def preview(monkeypatch, capsys):
    """Run `--dry-run` of the chain, which must change no file; returns the printed YAML and the lines after it."""

    def run(path: Path) -> tuple[str, list[str]]:
        before, paths = digests(path.parent), sorted(path.parent.rglob("*"))
        capsys.readouterr()
        assert run_command(monkeypatch, chain.main, path, "--dry-run") == 0
        assert (digests(path.parent), sorted(path.parent.rglob("*"))) == (before, paths)
        config_yaml, lines = capsys.readouterr().out.split("\n\n")
        return config_yaml, lines.splitlines()

    return run


def test_printed_config_loads_as_the_same_run(preview, tmp_path):
    path = write_config(tmp_path / "run", distill__precision="auto", distill__compile="auto", seed=3)
    config_yaml, _ = preview(path)
    printed = tmp_path / "printed.yaml"
    printed.write_text(config_yaml)
    assert load_run(printed) == resolve(load_run(path), torch.device("cpu"))


def test_outputs_of_a_new_run_are_listed_in_order(preview, tmp_path):
    _, lines = preview(write_config(tmp_path))
    shards, checkpoints = tmp_path / "shards/tiny", tmp_path / "checkpoints/tiny"
    assert lines == [
        f"teacher     {checkpoints}/teacher.safetensors: 42 steps of 64 images",
        f"synthesize  {shards}/0: 60 images in 3 batches of 4 steps",
        f"distill     {checkpoints}/student-0.safetensors: steps 0 to 3",
        f"evaluate    {checkpoints}/eval-0.json: on sklearn:digits",
        f"report      {checkpoints}/report.html",
    ]


def test_no_image_is_read_for_a_new_run(preview, tmp_path, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a dry run must not read, and perhaps download, the images of a teacher")

    monkeypatch.setattr("pipeline.data.image_sets.load_images", fail)
    preview(write_config(tmp_path))


def test_existing_outputs_are_marked(preview, finished, tmp_path):
    _, lines = preview(copy_run(finished, tmp_path))
    stages = ["teacher", "synthesize", "distill", "evaluate", "report"]
    assert [line.split()[0] for line in lines if line.endswith(" (exists)")] == stages


def test_evaluation_of_another_student_is_not_marked(preview, finished, tmp_path):
    path = copy_run(finished, tmp_path, distill__lr=0.2)
    load_run(path).student_path(0).unlink()
    _, lines = preview(path)
    assert [line.split()[0] for line in lines if "(exists)" in line] == ["teacher", "synthesize", "report"]


def test_evaluation_on_other_images_is_not_marked(preview, finished, tmp_path):
    _, lines = preview(copy_run(finished, tmp_path, data__test="npz:other.npz"))
    assert [line.split()[0] for line in lines if "(exists)" in line] == ["teacher", "synthesize", "distill", "report"]


def test_growth_of_a_set_is_marked(preview, finished, tmp_path):
    path = copy_run(finished, tmp_path, synthesis__num_images=97)
    load_run(path).student_path(0).unlink()
    config_yaml, lines = preview(path)
    assert lines[1].endswith("shards/tiny/0: 97 images in 5 batches of 4 steps (3 of 5 batches exist)")
    assert "grown_from:\n  - 60" in config_yaml


def test_partial_outputs_are_marked(preview, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    folder, student = load_run(path).round_folder(0), load_run(path).student_path(0)
    remove_manifest(folder)
    (folder / "parts").mkdir()
    for index in range(2):
        shutil.copy(folder / "train/0000-00000.tar", folder / "parts" / f"{index:06d}.tar")
    student.rename(student.with_suffix(".state"))
    _, lines = preview(path)
    assert lines[1].endswith("in 3 batches of 4 steps (2 of 3 batches exist)")
    assert lines[2].endswith(f"{student}: steps 0 to 3 (resumes from student-0.state)")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("teacher_training.steps=43", "checkpoints/tiny/teacher.safetensors"),
        ("synthesis.num_images=50", "shards/tiny/0"),
        ("distill.lr=0.2", "checkpoints/tiny/student-0.safetensors"),
    ],
)
def test_output_of_another_identity_raises(error_of, finished, tmp_path, setting, name):
    message = error_of(chain, copy_run(finished, tmp_path), "--dry-run", setting)
    assert f"{tmp_path / name} was made with another configuration (" in message


def test_missing_weights_raise(error_of, tmp_path):
    path = write_config(tmp_path, teacher_training=None, teacher__weights=str(tmp_path / "no.safetensors"))
    assert f"teacher.weights: there is no file {tmp_path / 'no.safetensors'}" in error_of(chain, path, "--dry-run")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.source=cifar10:resnet9", "student: cifar10 has no network 'resnet9'; did you mean resnet8?"),
        ("teacher.options.widht=4", "teacher: cifar10:resnet8 does not take options"),
        ("verifier={source: 'cifar10:resnet8', weights: no.pt}", "verifier.weights: there is no file no.pt"),
        ("ensemble=[{source: 'cifar10:resnet8', weights: no.pt}]", "ensemble.0.weights: there is no file no.pt"),
    ],
)
def test_wrong_network_raises(error_of, tmp_path, setting, message):
    assert error_of(chain, write_config(tmp_path), "--dry-run", setting).startswith(f"error: {message}")


def test_published_weights_are_not_downloaded(preview, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise AssertionError("a dry run must not download weights")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fail)
    images = {"channels": 3, "height": 32, "width": 32, "num_classes": 1000}
    teacher = {"source": "torchvision:mobilenet_v3_small", "weights": "DEFAULT"}
    _, lines = preview(write_config(tmp_path, images=images, teacher=teacher, teacher_training=None))
    assert lines[0] == "teacher     torchvision:mobilenet_v3_small with weights DEFAULT"


@pytest.mark.parametrize("key", ["teacher", "student", "verifier"])
def test_unknown_published_weights_raise_without_a_download(error_of, tmp_path, key):
    network = {"source": "torchvision:mobilenet_v3_small", "weights": "IMAGENET1K_V9"}
    images = {"channels": 3, "height": 32, "width": 32, "num_classes": 1000}
    good = {"source": "torchvision:mobilenet_v3_small", "weights": "DEFAULT"}
    networks = {"teacher": good, key: network}
    message = error_of(chain, write_config(tmp_path, images=images, teacher_training=None, **networks), "--dry-run")
    assert message.startswith(f"error: {key}.weights: torchvision:mobilenet_v3_small has no weights 'IMAGENET1K_V9'")


def test_list_of_1000_rounds_is_short(preview, tmp_path):
    many = {"synthesis__rounds": 1000, "synthesis__num_images": 3000, "synthesis__batch_size": 3}
    _, lines = preview(write_config(tmp_path, **many, distill__steps=1000, distill__batch_size=3))
    assert len(lines) < 25
    assert "...         and 992 more rounds like these" in lines
    assert str(tmp_path / "checkpoints/tiny/eval-999.json") in lines[-2]


def test_every_stage_prints_the_same_preview(monkeypatch, capsys, tmp_path):
    path, previews = write_config(tmp_path), []
    for stage in (synthesize, chain):
        assert run_command(monkeypatch, stage.main, path, "--dry-run") == 0
        previews.append(capsys.readouterr().out)
    assert previews[0] == previews[1]


def test_processes_that_cannot_share_a_batch_raise(error_of, tmp_path):
    message = error_of(chain, write_config(tmp_path), "--dry-run", "--processes", "3")
    assert message.startswith("error: distill.batch_size: 20 cannot be shared by 3 processes")


def test_several_processes_are_not_started(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(launch, "launch", lambda arguments: pytest.fail("processes were started"))
    path = write_config(tmp_path)
    assert run_command(monkeypatch, chain.main, path, "--dry-run", "--processes", "2") == 0
    assert capsys.readouterr().out.count("report      ") == 1
    assert list(digests(tmp_path)) == ["tiny.yaml"]
