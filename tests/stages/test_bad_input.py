import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import copy_run, digests, run_command, write_config

from pipeline.identity import CONFIG_FILE
from pipeline.run import load_run
from pipeline.runtime.files import TEMPORARY_SUFFIX, exclusive_lock
from stages import chain, command, distill, evaluate, report, synthesize, teacher, verify
from stages import verify as verify_stage
from stages.command import parse_arguments, read_config, run_stage

STAGES = (teacher, synthesize, distill, evaluate, report, verify, chain)
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def weights(finished) -> Path:
    return finished / "checkpoints" / "tiny" / "teacher.safetensors"


@pytest.fixture
def refusal(monkeypatch, capsys) -> Refusal:
    """Runs a stage that must end with exit code 2 and change nothing already there; returns its error message."""

    def run(stage, path: Path, *arguments: str) -> str:
        before = digests(path.parent, leave_out=["metrics.jsonl"])
        capsys.readouterr()
        assert run_command(monkeypatch, stage.main, path, *arguments) == 2
        after = digests(path.parent)
        assert {name: after.get(name) for name in before} == before
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    return run


BAD_SETTINGS = {
    "unknown key": (["synthesis.num_image=5"], ["unknown key synthesis.num_image;", "did you mean num_images?"]),
    "unknown key inside": (["synthesis.inversion.term.tv_l2=1"], ["synthesis.inversion.term;", "did you mean terms?"]),
    "unknown term": (
        ["synthesis.inversion.terms.tv=1"],
        ["unknown key synthesis.inversion.terms.tv", "known there: classification"],
    ),
    "word for a count": (["synthesis.num_images=many"], ["synthesis.num_images: expected a whole number, got 'many'"]),
    "fraction for a count": (["distill.steps=1.5"], ["distill.steps: expected a whole number, got 1.5"]),
    "word for a number": (["distill.lr=fast"], ["distill.lr: expected a finite number, got 'fast'"]),
    "not a number": (["distill.lr=.nan"], ["distill.lr: expected a finite number, got nan"]),
    "number for a switch": (["distill.augment.flip=3"], ["distill.augment.flip: expected true or false, got 3"]),
    "number for a list": (["teacher.mean=0.3"], ["teacher.mean: expected a list, got 0.3", "write it as [a, b]"]),
    "word for a section": (["synthesis=tiny"], ["synthesis: expected keys and values, got 'tiny'"]),
    "nothing for a section": (["student="], ["student: expected keys and values, got nothing"]),
    "unknown choice": (["synthesis.image_format=pngs"], ["synthesis.image_format: 'pngs'", "did you mean png?"]),
    "no value": (["seed"], ["override 'seed' must look like key=value"]),
    "fewer steps than rounds": (
        ["synthesis.rounds=3", "distill.steps=2"],
        ["distill.steps: 2 is less than one for each of synthesis.rounds=3", "raise it or lower synthesis.rounds"],
    ),
    "more rounds than images": (["synthesis.rounds=61"], ["synthesis.rounds: 61", "num_images=60", "lower it"]),
    "batch larger than the set": (
        ["synthesis.batch_size=61"],
        ["synthesis.batch_size: 61", "60 images", "lower it or raise num_images"],
    ),
    "batch larger than a round": (
        ["synthesis.rounds=4"],
        ["synthesis.batch_size: 20", "15 images", "rounds=4", "lower it or raise num_images"],
    ),
    "training batch larger than the set": (
        ["distill.batch_size=61"],
        ["distill.batch_size: 61", "60 images", "lower it or raise synthesis.num_images"],
    ),
    "competition without a rival": (
        ["synthesis.inversion.terms.competition=10"],
        ["synthesis.inversion.terms.competition", "synthesis.rounds of at least 2 (or set it to 0)"],
    ),
    "ensemble without weights": (
        ["ensemble=[{source: 'cifar10:resnet8'}]"],
        ["ensemble[0].weights: missing; an untrained network is sure of nothing"],
    ),
    "weights and training": (
        ["teacher.weights=teacher.pt"],
        ["teacher.weights: 'teacher.pt' and teacher_training are both given; drop one"],
    ),
    "neither weights nor training": (
        ["teacher_training="],
        ["teacher.weights: none, and no teacher_training section", "give one of them"],
    ),
    "a class that is not there": (["synthesis.classes=[3, 10]"], ["synthesis.classes: [10]", "0..9"]),
    "two channels": (["images.channels=2"], ["images.channels: 2", "use 1 or 3"]),
    "no folder name": (["name=a/b"], ["name: 'a/b' must be usable as a folder name"]),
    "no such data": (["data.test=digits"], ["data.test: 'digits' must be KIND:NAME"]),
}


@pytest.mark.parametrize(("settings", "fragments"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_setting_that_cannot_be_run_is_named_before_anything_is_made(refusal, tmp_path, settings, fragments):
    message = refusal(chain, write_config(tmp_path), "--set", *settings)
    for fragment in fragments:
        assert fragment in message
    assert message.count("\n") == 1
    assert list(digests(tmp_path)) == ["tiny.yaml"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_refuses_an_unknown_key(refusal, tmp_path, stage):
    assert "unknown key sead; did you mean seed?" in refusal(stage, write_config(tmp_path), "--set", "sead=1")


@pytest.mark.parametrize("round_index", ["1", "-1"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_refuses_a_round_that_is_not_there(refusal, tmp_path, stage, round_index):
    message = refusal(stage, write_config(tmp_path), "--round", round_index)
    assert message == f"error: --round {round_index}: synthesis.rounds=1 has rounds 0 to 0\n"


def test_a_missing_config_names_those_that_are_there(refusal, tmp_path):
    path = write_config(tmp_path)
    message = refusal(chain, path.with_name("tinny.yaml"))
    assert f"no config file {tmp_path / 'tinny.yaml'} (found there: {path})" in message


@pytest.mark.parametrize("text", ["seed: [1", "- a list", ""])
def test_a_config_that_is_no_mapping_is_named(refusal, tmp_path, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    assert f"error: {path} " in refusal(chain, path)


def with_weights(path: Path | str, **overrides) -> dict:
    return {"teacher_training": None, "teacher__weights": str(path), **overrides}


def test_a_missing_weight_file_is_named(refusal, tmp_path):
    path = write_config(tmp_path, **with_weights(tmp_path / "no.safetensors"))
    assert f"there is no file {tmp_path / 'no.safetensors'}" in refusal(chain, path)
    assert list(digests(tmp_path, leave_out=[".lock"])) == ["tiny.yaml"]


def test_a_teacher_that_is_not_trained_yet_is_asked_for(refusal, tmp_path):
    assert "run `make teacher` first" in refusal(synthesize, write_config(tmp_path))
    assert list(digests(tmp_path, leave_out=[".lock"])) == ["tiny.yaml"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_a_truncated_weight_file_is_named(refusal, tmp_path, weights, share):
    truncated = tmp_path / "truncated.safetensors"
    content = weights.read_bytes()
    truncated.write_bytes(content[: int(share * len(content))])
    message = refusal(chain, write_config(tmp_path, **with_weights(truncated)))
    assert f"weights: {truncated} is truncated or no safetensors file" in message


OTHER_NETWORKS = {
    "deeper": ({"teacher__source": "cifar10:resnet14"}, ["cifar10:resnet14", "30 missing (layer1.1.conv1.weight"]),
    "wider": ({"teacher__options": {"width": 8}}, ["conv1.weight (4, 1, 3, 3) instead of (8, 1, 3, 3)"]),
    "more classes": ({"images__num_classes": 11}, ["fc.weight (10, 16) instead of (11, 16)"]),
    "more channels": (
        {"images__channels": 3, "teacher__mean": [0.5] * 3, "teacher__std": [0.5] * 3},
        ["conv1.weight (4, 1, 3, 3) instead of (4, 3, 3, 3)"],
    ),
}


@pytest.mark.parametrize(("overrides", "fragments"), OTHER_NETWORKS.values(), ids=OTHER_NETWORKS)
def test_weights_of_another_network_are_named_with_their_keys(refusal, tmp_path, weights, overrides, fragments):
    message = refusal(synthesize, write_config(tmp_path, **with_weights(weights, **overrides)))
    for fragment in (f"weights: {weights} does not belong to cifar10:resnet", *fragments):
        assert fragment in message


def test_a_normalization_for_other_channels_is_named(refusal, tmp_path, weights):
    message = refusal(synthesize, write_config(tmp_path, **with_weights(weights, images__channels=3)))
    assert "mean (0.3,) and std (0.37,) need one value for each of images.channels=3" in message


def test_data_that_does_not_fit_the_images_is_named(refusal, tmp_path):
    message = refusal(chain, write_config(tmp_path, images__height=16))
    assert "sklearn:digits holds images of (C, H, W) = (1, 8, 8), the `images` section says (1, 16, 8)" in message


OTHER_CONFIGURATIONS = {
    "shards": (synthesize, "synthesis.num_images", "60", "50", "shards/tiny/0"),
    "shards before distillation": (distill, "synthesis.num_images", "60", "50", "shards/tiny/0"),
    "shards in the chain": (chain, "synthesis.inversion.lr", "0.1", "0.2", "shards/tiny/0"),
    "student before evaluation": (evaluate, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    "student before the report": (report, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    "student": (distill, "distill.lr", "0.1", "0.2", "checkpoints/tiny/student-0.safetensors"),
    "teacher": (teacher, "teacher_training.steps", "42", "43", "checkpoints/tiny/teacher.safetensors"),
}


@pytest.mark.parametrize(
    ("stage", "key", "there", "here", "name"), OTHER_CONFIGURATIONS.values(), ids=OTHER_CONFIGURATIONS
)
def test_outputs_of_another_configuration_are_refused(refusal, finished, tmp_path, stage, key, there, here, name):
    message = refusal(stage, copy_run(finished, tmp_path), "--set", f"{key}={here}")
    assert f"{tmp_path / name} was made with another configuration (" in message
    assert f"{key.removeprefix('teacher_')}: {there} there, {here} here" in message
    assert "Set another `name`, or remove it (`make clean`" in message


def test_settings_that_change_no_output_are_accepted(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    settings = [
        "synthesis.inversion.log_every=1",
        "distill.log_every=1",
        "distill.save_every_s=1",
        "distill.memory_gib=1",
    ]
    assert run_command(monkeypatch, chain.main, path, "--set", *settings, "teacher_training.log_every=1") == 0


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "complaint", "has_student"),
    [
        (alter, "was altered", False),
        (truncate, "truncated", False),
        (truncate, "truncated", True),
        (Path.unlink, "is missing", False),
        (Path.unlink, "is missing", True),
    ],
)
def test_a_student_learns_from_no_damaged_shard(refusal, finished, tmp_path, damage, complaint, has_student):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    tar = config.round_folder(0) / "train" / "0003-00000.tar"
    damage(tar)
    if not has_student:
        config.student_path(0).unlink()
    message = refusal(distill, path)
    assert f"{tar} " in message
    assert complaint in message
    assert f"remove {config.round_folder(0)} and run `make synthesize` again" in message
    assert config.student_path(0).exists() == has_student
    assert f"{tar} " in refusal(verify, path)


def test_each_stage_asks_for_what_the_one_before_makes(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    config = load_run(path)
    config.evaluation_path(0).unlink()
    message = refusal(report, path)
    assert message == (
        f"error: there is no evaluation of this student ({config.evaluation_path(0)}); run `make evaluate` first\n"
    )
    config.student_path(0).unlink()
    message = refusal(evaluate, path)
    assert message == f"error: there is no student of round 0 ({config.student_path(0)}); run `make distill` first\n"
    (config.round_folder(0) / "manifest.json").unlink()
    for stage in (distill, verify):
        message = refusal(stage, path)
        assert f"{config.round_folder(0)} holds no complete" in message
        assert "run `make synthesize` first" in message


def test_a_later_round_asks_for_the_student_before(refusal, tmp_path, weights):
    rounds = {"synthesis__rounds": 2, "synthesis__batch_size": 20, "synthesis__inversion__terms__competition": 1.0}
    path = write_config(tmp_path, **with_weights(weights, **rounds))
    assert "there is no student of round 0" in refusal(synthesize, path, "--round", "1")
    assert "holds no complete synthetic dataset" in refusal(distill, path, "--round", "1")


def test_a_truncated_student_is_named(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    student = load_run(path).student_path(0)
    student.write_bytes(student.read_bytes()[:1000])
    for stage in (distill, evaluate):
        assert f"{student} is truncated or no safetensors file" in refusal(stage, path)


@pytest.mark.parametrize("place", ["shards", "shards/tiny"])
def test_a_shards_folder_that_cannot_be_written_is_named(refusal, tmp_path, weights, place):
    path = write_config(tmp_path, **with_weights(weights))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("a file in place of the folder")
    message = refusal(synthesize, path)
    assert f"cannot write {tmp_path / 'shards/tiny'}:" in message
    assert "a file is in the place of a folder: remove it, or set shards_dir" in message


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/tiny"])
def test_a_checkpoints_folder_that_cannot_be_written_is_named(refusal, tmp_path, place):
    path = write_config(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("a file in place of the folder")
    assert str(tmp_path / place) in refusal(teacher, path)


@pytest.mark.parametrize("name", ["parts/000001.tar", "train/0004-00000.tar", "manifest.json"])
def test_after_a_full_disk_the_same_command_goes_on(refusal, finished, tmp_path, weights, monkeypatch, name):
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(weights.read_bytes())
    file = config.round_folder(0) / name
    file.parent.mkdir(parents=True)
    file.with_name(file.name + TEMPORARY_SUFFIX).symlink_to("/dev/full")
    message = refusal(synthesize, path)
    assert f"cannot write {file}: the disk or quota is full: free space and run the same command again" in message
    assert not file.exists()
    assert (config.round_folder(0) / "parts" / "000000.tar").exists()
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert digests(config.round_folder(0), leave_out=[CONFIG_FILE]) == digests(
        finished / "shards/tiny/0", leave_out=[CONFIG_FILE]
    )


def test_a_full_disk_keeps_the_training_state_and_no_student(refusal, finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path, distill__save_every_s=0)
    student = load_run(path).student_path(0)
    complete = student.read_bytes()
    student.unlink()
    student.with_name(student.name + TEMPORARY_SUFFIX).symlink_to("/dev/full")
    assert f"cannot write {student}: the disk or quota is full" in refusal(distill, path)
    assert not student.exists()
    assert student.with_suffix(".state").exists()
    assert run_command(monkeypatch, distill.main, path) == 0
    assert student.read_bytes() == complete


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_training_state_is_named(refusal, finished, tmp_path, share):
    path = copy_run(finished, tmp_path, distill__save_every_s=0)
    student = load_run(path).student_path(0)
    student.unlink()
    student.with_name(student.name + TEMPORARY_SUFFIX).symlink_to("/dev/full")
    refusal(distill, path)
    state = student.with_suffix(".state")
    content = state.read_bytes()
    state.write_bytes(content[: int(share * len(content))])
    message = refusal(distill, path)
    assert str(state) in message
    assert "remove it to train from the start" in message


def test_a_run_that_diverges_is_stopped_with_step_and_fix(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path, distill__lr=1e20)
    config = load_run(path)
    config.student_path(0).unlink()
    assert "the loss is nan at step 1; lower lr" in refusal(distill, path)
    assert not config.student_path(0).exists()


@pytest.mark.filterwarnings("default:.*mirrors images:UserWarning")
@pytest.mark.parametrize("key", ["synthesis.inversion.flip", "distill.augment.flip", "teacher_training.augment.flip"])
def test_mirrored_digits_are_warned_of_and_run(tmp_path, monkeypatch, capsys, key):
    path = write_config(tmp_path)
    assert run_command(monkeypatch, chain.main, path, "--set", f"{key}=true") == 0
    message = capsys.readouterr().err
    assert message == f"warning: {key}: true mirrors images of sklearn:digits, which changes what they show\n"
    assert load_run(path).evaluation_path(0).exists()


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(session, round_index):
        raise KeyboardInterrupt

    assert run_command(monkeypatch, interrupted, write_config(tmp_path)) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def test_weights_that_were_wrong_can_be_corrected(refusal, weights, tmp_path, monkeypatch):
    own = tmp_path / "own.safetensors"
    own.write_bytes(weights.read_bytes()[:2000])
    path = write_config(tmp_path, **with_weights(own))
    refusal(synthesize, path)
    own.write_bytes(weights.read_bytes())
    assert run_command(monkeypatch, synthesize.main, path) == 0


@pytest.mark.parametrize("stage", [distill, evaluate])
def test_a_student_of_other_origin_is_refused(refusal, finished, tmp_path, stage):
    path = copy_run(finished, tmp_path)
    student = load_run(path).student_path(0)
    safetensors.torch.save_file(safetensors.torch.load_file(student), student)
    assert f"{student} was not written by a run" in refusal(stage, path)


@pytest.mark.parametrize(
    ("name", "stage"), [("shards/tiny/0/manifest.json", synthesize), ("checkpoints/tiny/eval-0.json", report)]
)
def test_damaged_records_are_named(refusal, finished, tmp_path, name, stage):
    path = copy_run(finished, tmp_path)
    (tmp_path / name).write_text("{")
    assert f"{tmp_path / name} is damaged" in refusal(stage, path)


def test_a_full_disk_under_the_metrics_is_named(refusal, tmp_path, weights):
    path = write_config(tmp_path, **with_weights(weights))
    metrics = load_run(path).metrics_path()
    metrics.parent.mkdir(parents=True)
    metrics.symlink_to("/dev/full")
    assert f"cannot write {metrics}: the disk or quota is full: free space" in refusal(synthesize, path)


def test_a_device_that_is_none_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DREAMDISTILL_DEVICE", "gpu")
    monkeypatch.setattr("sys.argv", ["stage", "--config", str(write_config(tmp_path))])
    with pytest.raises(SystemExit, match="2"):
        run_stage(teacher.main, "")
    assert (
        capsys.readouterr().err
        == "error: DREAMDISTILL_DEVICE=gpu is no device to compute on; use cpu, cuda or cuda:N\n"
    )


def test_synthesis_notices_a_lost_shard(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    lost = load_run(path).round_folder(0) / "train" / "0003-00000.tar"
    lost.unlink()
    assert f"{lost} is missing; remove" in refusal(synthesize, path)


def test_a_second_process_on_the_same_run_is_refused(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    with exclusive_lock(load_run(path).checkpoints / ".lock"):
        assert "another process works on" in refusal(chain, path)


def test_a_second_process_on_the_same_shards_is_refused_whatever_its_checkpoints(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path, checkpoints_dir=str(tmp_path / "others"))
    with exclusive_lock(load_run(path).shards / ".lock"):
        assert f"another process works on {tmp_path}/shards/tiny; wait for it" in refusal(synthesize, path)


def test_shards_and_checkpoints_may_be_one_folder(tmp_path, monkeypatch):
    path = write_config(tmp_path, shards_dir=str(tmp_path / "all"), checkpoints_dir=str(tmp_path / "all"))
    assert run_command(monkeypatch, teacher.main, path) == 0


def test_overrides_may_be_given_in_several_places(tmp_path):
    path = write_config(tmp_path)
    arguments = parse_arguments("", ["--config", str(path), "--set", "seed=5", "name=other", "--set", "distill.lr=0.5"])
    config = read_config(arguments)
    assert (config.seed, config.name, config.distill.lr) == (5, "other", 0.5)


def test_timm_is_asked_for_in_one_line_where_it_is_missing(refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    path = write_config(tmp_path, student={"source": "timm:resnet10t"})
    assert "timm:resnet10t needs the timm package: pip install timm" in refusal(chain, path)


@pytest.mark.parametrize("driver", [None, "PyTorch is built without CUDA; install a build with it"])
def test_a_stage_begins_with_what_it_runs_on(tmp_path, monkeypatch, capsys, finished, driver):
    monkeypatch.setattr(command, "unusable_driver", lambda: driver)
    monkeypatch.delenv("DREAMDISTILL_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(command, "is_device_named", lambda: False)
    assert run_command(monkeypatch, verify_stage.main, copy_run(finished, tmp_path)) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    threads = torch.get_num_threads()
    assert first.startswith("on cpu (")
    assert first.endswith(
        f"): 1 worker with {threads} thread{'s' * (threads > 1)}; "
        "teacher in float32, uncompiled; synthesis in float32, uncompiled; distillation in float32, uncompiled"
    )
    assert [line for line in rest if "driver" in line] == (
        [f"the NVIDIA driver of this machine is not used: {driver}"] if driver else []
    )


def test_a_recipe_that_diverged_can_be_corrected(refusal, tmp_path, weights, monkeypatch):
    path = write_config(tmp_path, **with_weights(weights))
    diverging = ["--set", "synthesis.inversion.lr=1e38", "synthesis.inversion.clamp=false"]
    assert "lower synthesis.inversion.lr" in refusal(synthesize, path, *diverging)
    assert run_command(monkeypatch, synthesize.main, path) == 0


@pytest.mark.parametrize("setting", ["student.source=cifar10:resnet9", "data.test=npz:no.npz"])
def test_the_chain_looks_at_its_last_inputs_first(refusal, tmp_path, setting):
    refusal(chain, write_config(tmp_path), "--set", setting)
    assert list(digests(tmp_path, leave_out=[".lock"])) == ["tiny.yaml"]


def test_parts_of_unknown_origin_are_refused(refusal, finished, tmp_path):
    path = copy_run(finished, tmp_path)
    folder = load_run(path).round_folder(0)
    (folder / "manifest.json").unlink()
    (folder / "identity.json").unlink()
    (folder / "parts").mkdir()
    shutil.copy(folder / "train" / "0003-00000.tar", folder / "parts" / "000000.tar")
    assert f"{folder} holds parts but no identity.json" in refusal(synthesize, path)
