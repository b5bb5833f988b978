"""Outputs of another identity are neither reused nor overwritten; settings without effect on outputs do not count."""

from pathlib import Path

import pytest
import safetensors.torch
from tiny_run import copy_run, run_command, run_in_process, tiny_config, write_config

from pipeline.data.shards import read_manifest
from pipeline.identity import synthesis_identity
from pipeline.run import load_run
from pipeline.runtime.fingerprint import fingerprint
from stages import chain, distill, estimate, evaluate, report, synthesize, teacher

TEACHER = "checkpoints/tiny/teacher.safetensors"
# Stage, key, value of the finished run, value now, and the output that has another identity.
OTHER_IDENTITIES = {
    "shards": (synthesize, "synthesis.inversion.lr", "0.1", "0.2", "shards/tiny/0"),
    "shards in distill": (distill, "synthesis.inversion.lr", "0.1", "0.2", "shards/tiny/0"),
    "shards in the chain": (chain, "synthesis.inversion.lr", "0.1", "0.2", "shards/tiny/0"),
    "student": (distill, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    "student in evaluate": (evaluate, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    "shards in the report": (report, "synthesis.inversion.lr", "0.1", "0.2", "shards/tiny/0"),
    "student in the report": (report, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    **{
        f"teacher in {stage.__name__}": (stage, "teacher_training.steps", "42", "43", TEACHER)
        for stage in (teacher, synthesize, distill, evaluate, report, estimate)
    },
}


@pytest.mark.parametrize(("stage", "key", "old", "new", "name"), OTHER_IDENTITIES.values(), ids=OTHER_IDENTITIES)
def test_output_of_another_identity_raises(error_of, finished, tmp_path, stage, key, old, new, name):
    message = error_of(stage, copy_run(finished, tmp_path), f"{key}={new}")
    assert f"{tmp_path / name} was made with another configuration (" in message
    assert f"{key}: {old} before, {new} now" in message
    assert "Set another `name`, or remove it (the command `clean`" in message


def test_other_training_images_raise_in_a_stage_that_does_not_read_them(error_of, finished, tmp_path):
    message = error_of(distill, copy_run(finished, tmp_path), "data.train=npz:no.npz")
    assert f"{tmp_path / TEACHER} was made with another configuration (data.source: sklearn:digits before" in message


def test_settings_that_change_no_output_are_accepted(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    settings = [
        "synthesis.inversion.log_every=1",
        "distill.log_every=1",
        "distill.save_every_s=1",
        "distill.memory_gib=1",
        "teacher_training.log_every=1",
    ]
    assert run_command(monkeypatch, chain.main, path, *settings) == 0


def test_manifest_has_the_fingerprint_of_the_identity(finished):
    config = tiny_config(finished)
    assert read_manifest(config.round_folder(0))["fingerprint"] == fingerprint(synthesis_identity(config, 0))


@pytest.mark.parametrize("stage", [distill, evaluate])
def test_student_file_without_identity_raises(error_of, finished, tmp_path, stage):
    path = copy_run(finished, tmp_path)
    student = load_run(path).student_path(0)
    safetensors.torch.save_file(safetensors.torch.load_file(student), student)
    assert f"{student} was not written by a run" in error_of(stage, path)


@pytest.fixture
def stopped(error_of, teacher_weights, tmp_path, fill_disk_at):
    """The config of a run that was stopped before its parts were packed, and the folder of its round."""
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(teacher_weights.read_bytes())
    fill_disk_at(config.round_folder(0) / "manifest.json")
    error_of(synthesize, path)
    return path, config.round_folder(0)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[1:])])
def test_parts_are_known_without_the_file_beside_them(stopped, monkeypatch, capsys, damage):
    path, folder = stopped
    damage(folder / "identity.json")
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert "made again" not in capsys.readouterr().out


def test_parts_of_another_configuration_raise_without_the_file_beside_them(stopped, error_of):
    path, folder = stopped
    assert "lr: 0.1 before, 0.3 now" in error_of(synthesize, path, "synthesis.inversion.lr=0.3")
    (folder / "identity.json").unlink()
    message = error_of(synthesize, path, "synthesis.inversion.lr=0.3")
    assert f"{folder} holds parts of another configuration, and identity.json, which would tell what" in message


def test_training_state_beside_a_finished_student_is_removed(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    state = config.student_path(0).with_suffix(".state")
    state.write_bytes(b"of a process that was killed after it wrote the student")
    run_in_process(distill.main, config)
    assert not state.exists()


@pytest.mark.parametrize("name", ["README.md", "train/0000-00000.tar"])
def test_a_folder_with_other_files_raises_and_is_kept(error_of, tmp_path, teacher_weights, name):
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(teacher_weights.read_bytes())
    file = config.round_folder(0) / name
    file.parent.mkdir(parents=True)
    file.write_text("of somebody else")
    first = name.partition("/")[0]
    assert f"{config.round_folder(0)} holds other files, such as {first}; name another" in error_of(synthesize, path)
