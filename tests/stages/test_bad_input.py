"""Configs, weights and data that a run cannot use: one line names the key, the value and the fix; nothing is made."""

import sys

import pytest
from PIL import Image
from tiny_run import copy_run, digests, run_command, tiny_config, with_weights, write_config

from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.session import open_session
from stages import chain, distill, estimate, synthesize, teacher

BAD_SETTINGS = {
    "unknown key": (["synthesis.num_image=5"], ["unknown key synthesis.num_image;", "did you mean num_images?"]),
    "unknown key inside": (["synthesis.inversion.term.tv_l2=1"], ["synthesis.inversion.term;", "did you mean terms?"]),
    "unknown term": (
        ["synthesis.inversion.terms.tv=1"],
        ["unknown key synthesis.inversion.terms.tv", "known keys: classification"],
    ),
    "word for a count": (["synthesis.num_images=many"], ["synthesis.num_images: expected a whole number, got 'many'"]),
    "fraction for a count": (["distill.steps=1.5"], ["distill.steps: expected a whole number, got 1.5"]),
    "word for a number": (["distill.lr=fast"], ["distill.lr: expected a finite number, got 'fast'"]),
    "not a number": (["distill.lr=.nan"], ["distill.lr: expected a finite number, got nan"]),
    "number for a switch": (["distill.augment.flip=3"], ["distill.augment.flip: expected true or false, got 3"]),
    "number for a list": (["teacher.mean=0.3"], ["teacher.mean: expected a list, got 0.3", "write it as [0.3]"]),
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
    "competition without a student": (
        ["synthesis.inversion.terms.competition=10"],
        [
            "synthesis.inversion.terms.competition: needs synthesis.rounds of at least 2, since it compares the "
            "teacher with the student of the previous round (or set it to 0)"
        ],
    ),
    "ensemble without weights": (
        ["ensemble=[{source: 'cifar10:resnet8'}]"],
        ["ensemble.0.weights: missing; an untrained network adds nothing"],
    ),
    "verifier without weights": (
        ["verifier={source: 'cifar10:resnet8'}"],
        ["verifier.weights: missing; the scores of an untrained verifier mean nothing"],
    ),
    "weights and training": (
        ["teacher.weights=teacher.pt"],
        [
            "teacher.weights: 'teacher.pt' and teacher_training are both given; drop one: to use the "
            "weights, set teacher_training: null"
        ],
    ),
    "neither weights nor training": (
        ["teacher_training="],
        ["teacher.weights: none, and no teacher_training section", "give one of them"],
    ),
    "more classes than a set can have": (
        ["images.num_classes=21843"],
        ["images.num_classes: 21843 classes are more than the 10000 of a set", "name fewer of them under `classes`"],
    ),
    "class out of range": (["classes=[3, 10]"], ["classes: 10", "0..9"]),
    "class by an unknown name": (["classes=[3, seven]"], ["classes: 'seven' is a name", "set data.class_names"]),
    "class named twice": (["classes=[3, 4, 3]"], ["classes: 3 is named twice; remove one"]),
    "classes of a section": (["synthesis.classes=[3, 4]"], ["synthesis.classes is now `classes`", "move it there"]),
    "two channels": (["images.channels=2"], ["images.channels: 2", "use 1 or 3"]),
    "invalid folder name": (["name=a/b"], ["name: 'a/b' must be usable as a folder name"]),
    "invalid data source": (["data.test=digits"], ["data.test: 'digits' must be KIND:NAME"]),
}


@pytest.mark.parametrize(("settings", "fragments"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_setting_raises_before_anything_is_made(error_of, tmp_path, settings, fragments):
    message = error_of(chain, write_config(tmp_path), *settings)
    for fragment in fragments:
        assert fragment in message
    assert message.count("\n") == 1
    assert list(digests(tmp_path)) == ["tiny.yaml"]


def test_missing_config_lists_the_existing_ones(error_of, tmp_path):
    path = write_config(tmp_path)
    message = error_of(chain, path.with_name("tinny.yaml"))
    assert f"no config file {tmp_path / 'tinny.yaml'}; did you mean {path}? (existing files: {path})" in message


def test_folder_for_a_config_lists_its_files(error_of, tmp_path):
    path = write_config(tmp_path)
    assert error_of(chain, tmp_path) == f"error: no config file {tmp_path}, it is a folder (existing files: {path})\n"


@pytest.mark.parametrize("text", ["seed: [1", "- a list", ""])
def test_config_that_is_not_a_mapping_raises(error_of, tmp_path, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    assert f"error: {path} " in error_of(chain, path)


def test_missing_weight_file_raises(error_of, tmp_path):
    path = write_config(tmp_path, **with_weights(tmp_path / "no.safetensors"))
    assert f"there is no file {tmp_path / 'no.safetensors'}" in error_of(chain, path)
    assert list(digests(tmp_path, exclude=[".lock"])) == ["tiny.yaml"]


def test_untrained_teacher_raises(error_of, tmp_path):
    assert "run the stage `teacher` first" in error_of(synthesize, write_config(tmp_path))
    assert list(digests(tmp_path, exclude=[".lock"])) == ["tiny.yaml"]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.99])
def test_truncated_weight_file_raises(error_of, tmp_path, teacher_weights, fraction):
    truncated = tmp_path / "truncated.safetensors"
    content = teacher_weights.read_bytes()
    truncated.write_bytes(content[: int(fraction * len(content))])
    message = error_of(chain, write_config(tmp_path, **with_weights(truncated)))
    assert f"weights: {truncated} is truncated or not a safetensors file" in message


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
def test_weights_of_another_network_raise_with_their_keys(error_of, tmp_path, teacher_weights, overrides, fragments):
    message = error_of(synthesize, write_config(tmp_path, **with_weights(teacher_weights, **overrides)))
    for fragment in (f"weights: {teacher_weights} does not belong to cifar10:resnet", *fragments):
        assert fragment in message


def test_normalization_for_other_channels_raises(error_of, tmp_path, teacher_weights):
    message = error_of(synthesize, write_config(tmp_path, **with_weights(teacher_weights, images__channels=3)))
    assert "mean (0.3,) and std (0.37,) need one value for each of images.channels=3" in message


def test_data_of_another_image_size_raises(error_of, tmp_path):
    message = error_of(chain, write_config(tmp_path, images__height=16))
    assert "sklearn:digits holds images of (C, H, W) = (1, 8, 8), the `images` section says (1, 16, 8)" in message


@pytest.mark.parametrize(
    "setting",
    [
        "student.source=cifar10:resnet9",
        "data.test=npz:no.npz",
        "verifier={source: 'cifar10:resnet9', weights: tiny.yaml}",
    ],
)
def test_chain_checks_the_inputs_of_all_stages_first(error_of, tmp_path, setting):
    error_of(chain, write_config(tmp_path), setting)
    assert list(digests(tmp_path, exclude=[".lock"])) == ["tiny.yaml"]


@pytest.mark.parametrize("stage", [chain, teacher], ids=lambda stage: stage.__name__)
def test_test_images_are_looked_at_before_any_work(error_of, tmp_path, stage):
    for label in range(10):
        (tmp_path / "real" / str(label)).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "real" / str(label) / "0.png")
    damaged = tmp_path / "real" / "7" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:42])
    message = error_of(stage, write_config(tmp_path, data__test=f"imagefolder:{tmp_path / 'real'}"))
    assert message.startswith(f"error: 1 of 10 images cannot be read: {damaged} (")
    assert not list((tmp_path / "checkpoints").rglob("*.*"))


def test_test_images_are_not_looked_at_again_after_the_evaluation(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path)
    monkeypatch.setattr("pipeline.session.check_images", lambda images: pytest.fail("they were looked at"))
    assert run_command(monkeypatch, chain.main, path) == 0


@pytest.mark.parametrize("stage", [chain, teacher], ids=lambda stage: stage.__name__)
def test_a_bad_shards_dir_shows_before_a_teacher_is_trained(error_of, tmp_path, stage):
    (tmp_path / "file").write_text("no folder")
    message = error_of(stage, write_config(tmp_path, shards_dir=str(tmp_path / "file")))
    assert f"cannot write {tmp_path / 'file' / 'tiny'}: a file has the name of a folder" in message
    assert not list((tmp_path / "checkpoints").rglob("*.*"))


@pytest.mark.parametrize("stage", [chain, estimate, distill], ids=lambda stage: stage.__name__)
def test_batch_that_processes_cannot_share_raises_first(tmp_path, stage):
    with (
        open_session(tiny_config(tmp_path), DistributedContext(size=3)) as session,
        pytest.raises(ValueError, match=r"^distill\.batch_size: 20 cannot be shared by 3 processes"),
    ):
        stage.main(session)
    assert list(digests(tmp_path)) == ["tiny.yaml"]


def test_missing_timm_package_raises(error_of, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    path = write_config(tmp_path, student={"source": "timm:resnet10t"})
    assert "timm:resnet10t needs the timm package: pip install timm" in error_of(chain, path)


def test_bad_weights_can_be_replaced(error_of, teacher_weights, tmp_path, monkeypatch):
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(teacher_weights.read_bytes()[:2000])
    path = write_config(tmp_path, **with_weights(weights))
    error_of(synthesize, path)
    weights.write_bytes(teacher_weights.read_bytes())
    assert run_command(monkeypatch, synthesize.main, path) == 0


def test_diverged_inversion_can_be_corrected(error_of, tmp_path, teacher_weights, monkeypatch):
    path = write_config(tmp_path, **with_weights(teacher_weights))
    diverging = ["synthesis.inversion.lr=1e38", "synthesis.inversion.clamp=false"]
    assert "lower synthesis.inversion.lr" in error_of(synthesize, path, *diverging)
    assert run_command(monkeypatch, synthesize.main, path) == 0


def test_diverged_distillation_raises_with_step_and_fix(error_of, tmp_path, finished):
    path = copy_run(finished, tmp_path, distill__lr=1e20)
    config = load_run(path)
    config.student_path(0).unlink()
    assert "distill: the loss is nan at step 1; lower distill.lr" in error_of(distill, path)
    assert not config.student_path(0).exists()


@pytest.mark.filterwarnings("default:.*mirrors images:UserWarning")
@pytest.mark.parametrize("key", ["synthesis.inversion.flip", "distill.augment.flip", "teacher_training.augment.flip"])
def test_flipped_digits_warn_and_run(tmp_path, monkeypatch, capsys, key):
    path = write_config(tmp_path)
    assert run_command(monkeypatch, chain.main, path, f"{key}=true") == 0
    message = capsys.readouterr().err
    assert message == f"warning: {key}: true mirrors images of sklearn:digits, which changes what they show\n"
    assert load_run(path).evaluation_path(0).exists()
