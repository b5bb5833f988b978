"""`make quality`: the table and its file, of a round, of another folder, and without real images."""

import json
import shutil
import sys

import pytest
import torch
from tiny_run import (
    copy_run,
    digests,
    run_command,
    run_in_process,
    tiny_config,
    with_weights,
    write_config,
    write_round,
)

from pipeline.data.codec import encode_image
from pipeline.data.shards import read_manifest
from pipeline.quality import quality_path
from pipeline.run import load_run
from stages import clean, quality


def scores_of(config, round_index=0) -> dict:
    run_in_process(quality.main, config, round_index)
    return json.loads(quality_path(config, round_index).read_text())


def test_scores_of_a_round(finished, tmp_path, capsys):
    config = load_run(copy_run(finished, tmp_path))
    before = digests(tmp_path)
    scores = scores_of(config)
    assert {name: digest for name, digest in digests(tmp_path).items() if name in before} == before
    assert (scores["num_images"], scores["num_real"], scores["num_features"]) == (60, 500, 16)
    assert (scores["network"], scores["layer"]) == ("teacher", "fc")
    assert scores["set_scores"] == read_manifest(config.round_folder(0))["scores"]
    assert scores["synthetic"]["top1"] == pytest.approx(scores["set_scores"]["teacher_top1"])
    assert scores["synthetic"]["probability"] == pytest.approx(scores["set_scores"]["teacher_probability"], abs=1e-4)
    assert scores["synthetic"].keys() == scores["real"].keys()
    # Few steps: the images are still far from real ones, which are near each other.
    assert scores["real"]["frechet_distance"] < scores["synthetic"]["frechet_distance"]
    assert scores["real"]["bn_divergence"] < scores["synthetic"]["bn_divergence"]
    assert scores["real"]["coverage"] > scores["synthetic"]["coverage"]
    lines = capsys.readouterr().out.splitlines()
    assert "60 images beside 500 real ones; features: the 16 inputs of fc of the teacher" in lines[0]
    assert len(lines) == 3 + 11 + 1


def test_second_call_writes_the_same_bytes(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    scores_of(config)
    first = quality_path(config, 0).read_bytes()
    scores_of(config)
    assert quality_path(config, 0).read_bytes() == first


def test_network_and_folder_of_the_config(finished, tmp_path, teacher_weights):
    teacher = {"source": "cifar10:resnet8", "options": {"width": 4}, "weights": str(teacher_weights)}
    network = {**teacher, "mean": [0.3], "std": [0.37]}
    shutil.copytree(finished / "shards" / "tiny" / "0", tmp_path / "set")
    config = tiny_config(tmp_path, evaluation={"quality": {"shards": str(tmp_path / "set"), "network": network}})
    run_in_process(quality.main, config)
    (path,) = config.checkpoints.glob("quality-*.json")
    scores = json.loads(path.read_text())
    assert path.name == f"quality-{scores['fingerprint']}.json"
    assert (scores["shards"], scores["network"]) == (str(tmp_path / "set"), "cifar10:resnet8")


def test_without_real_images_it_warns_and_scores_the_set_alone(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, data__test="npz:none.npz"))
    with pytest.warns(UserWarning, match=r"without real images: npz:none\.npz: there is no such file"):
        scores = scores_of(config)
    assert (scores["num_real"], scores["real"]) == (0, {})
    assert set(scores["synthetic"]) == {
        "top1",
        "probability",
        "class_distance",
        "vendi",
        "vendi_images",
        "bn_divergence",
    }


def test_without_torchmetrics_it_warns_and_leaves_out_the_comparison(finished, tmp_path, monkeypatch):
    config = load_run(copy_run(finished, tmp_path))
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.warns(UserWarning, match="not compared with the real images: .* pip install"):
        scores = scores_of(config)
    assert scores["synthetic"].keys() == scores["real"].keys() >= {"top1", "vendi"}
    assert "frechet_distance" not in scores["synthetic"]


def test_with_too_few_images_it_warns_and_leaves_out_the_comparison(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path, evaluation={"quality": {"num_neighbors": 60}}))
    with pytest.warns(UserWarning, match="num_neighbors: 60 neighbors need more images than the 60 synthetic"):
        scores = scores_of(config)
    assert "coverage" not in scores["synthetic"]
    assert scores["num_real"] == 500


def test_with_an_unreadable_test_image_it_warns_and_scores_the_set_alone(finished, tmp_path):
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(parents=True)
        (tmp_path / "test" / str(label) / "0.png").write_bytes(encode_image(torch.zeros(1, 8, 8).byte(), "png"))
    (tmp_path / "test/5/0.png").write_bytes(b"no image")
    config = load_run(copy_run(finished, tmp_path, data__test=f"imagefolder:{tmp_path / 'test'}"))
    with pytest.warns(UserWarning, match="without real images: 1 of 10 images cannot be read"):
        scores = scores_of(config)
    assert (scores["num_real"], scores["real"]) == (0, {})
    assert scores["synthetic"].keys() >= {"top1", "vendi"}


def test_each_set_of_distill_shards_is_scored(finished, tmp_path, teacher_weights, capsys):
    existing = finished / "shards/tiny/0"
    config = tiny_config(tmp_path, **with_weights(teacher_weights, distill__shards=[str(existing)]))
    run_in_process(quality.main, config)
    (path,) = config.checkpoints.glob("quality-*.json")
    assert path.name == f"quality-{read_manifest(existing)['fingerprint']}.json"
    assert json.loads(path.read_text())["num_images"] == 60
    assert f"quality: {existing}: 60 images" in capsys.readouterr().out


def test_sets_of_distill_shards_that_do_not_fit_are_an_error(tmp_path, monkeypatch, capsys, teacher_weights):
    path = write_config(tmp_path, **with_weights(teacher_weights, distill__shards=["http://127.0.0.1:9/set"]))
    assert run_command(monkeypatch, quality.main, path) == 2
    assert "is not fetched yet; run the stage `distill` first" in capsys.readouterr().err


def test_round_of_another_configuration_is_an_error(finished, tmp_path, error_of):
    path = copy_run(finished, tmp_path, synthesis__image_format="webp")
    assert "was made with another configuration (synthesis.image_format: png before" in error_of(quality, path)


def test_missing_set_is_an_error(tmp_path, monkeypatch, capsys, finished):
    path = copy_run(finished, tmp_path)
    shutil.rmtree(tmp_path / "shards")
    assert run_command(monkeypatch, quality.main, path) == 2
    assert "holds no complete synthetic dataset; name the folder of one, or run the stage" in capsys.readouterr().err


def test_set_of_other_images_is_an_error(tmp_path, monkeypatch, capsys, finished):
    write_round(tmp_path / "set")
    path = copy_run(finished, tmp_path, evaluation={"quality": {"shards": str(tmp_path / "set")}})
    assert run_command(monkeypatch, quality.main, path) == 2
    assert "holds images of (C, H, W) = (3, 8, 8), the `images` section says (1, 8, 8)" in capsys.readouterr().err


def test_clean_removes_the_scores_of_a_round(finished, tmp_path):
    config = load_run(copy_run(finished, tmp_path))
    scores_of(config)
    clean.remove(config, 0)
    assert not quality_path(config, 0).exists()


def test_scores_do_not_depend_on_the_size_of_passes(finished, tmp_path):
    large, small = (
        scores_of(load_run(copy_run(finished, tmp_path / str(size), evaluation={"batch_size": size})))
        for size in (500, 7)
    )
    for name, value in large["synthetic"].items():
        assert small["synthetic"][name] == pytest.approx(value, rel=1e-3), name
