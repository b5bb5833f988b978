"""`distill.shards`: a student learns from sets made earlier, elsewhere, or by several teachers."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from http_server import serve
from killable import start_stage
from tiny_run import copy_run, run_command, run_in_process, tiny_config, with_weights, write_config

from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import read_manifest
from pipeline.models.checkpoint import read_description
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.files import write_json
from pipeline.runtime.fingerprint import fingerprint
from pipeline.session import open_session
from stages import chain, distill, estimate, evaluate, report, synthesize, verify

SET = "shards/tiny/0"


@pytest.fixture(scope="module")
def some_classes(teacher_weights, tmp_path_factory) -> Path:
    """A set of the classes 7, 1 and 4, in this order."""
    folder = tmp_path_factory.mktemp("some_classes")
    run_in_process(synthesize.main, tiny_config(folder, **with_weights(teacher_weights, classes=[7, 1, 4])))
    return folder / SET


@pytest.fixture
def config_with(tmp_path, teacher_weights):
    """Write the config of a run that learns from sets."""

    def write(*sets: Path | str, **overrides) -> Path:
        return write_config(
            tmp_path, **with_weights(teacher_weights, distill__shards=list(map(str, sets)), **overrides)
        )

    return write


def pool_of(config: RunConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels and the labels that the student learns from."""
    with open_session(config, DistributedContext()) as session:
        session.pool.require_complete(0)
        images = session.pool.images(0)
        return images.batch(range(len(images.labels))), images.labels


def same_tensors(path: Path, other: Path) -> bool:
    first, second = (safetensors.torch.load_file(file) for file in (path, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_chain_learns_from_a_set_and_makes_none(finished, config_with, tmp_path, monkeypatch, capsys):
    path = config_with(finished / SET)
    config = load_run(path)
    assert run_command(monkeypatch, chain.main, path) == 0
    assert "synthesize: nothing to make, distill.shards names the images" in capsys.readouterr().out
    assert not config.round_folder(0).exists()
    assert same_tensors(config.student_path(0), tiny_config(finished).student_path(0))
    assert json.loads(config.evaluation_path(0).read_text())["num_images"] == 500
    assert (config.checkpoints / "report.html").exists()
    assert run_command(monkeypatch, chain.main, path) == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert run_command(monkeypatch, verify.main, path) == 0
    assert f"verify: {finished / SET / 'train'}, 10 whole files" in capsys.readouterr().out


def test_a_damaged_set_is_named_with_what_to_do_about_it(finished, config_with, tmp_path, error_of):
    folder, path = tmp_path / "moved", config_with(tmp_path / "moved")
    shutil.copytree(finished / SET, folder)
    (folder / "train/0003-00000.tar").unlink()
    assert error_of(verify, path).endswith(
        f"{folder / 'train/0003-00000.tar'} is missing; run the stage `synthesize` of the run that made it, or remove "
        f"{folder} and make or fetch it again\n"
    )


def test_verify_names_a_set_that_is_not_there(config_with, tmp_path, error_of):
    message = error_of(verify, config_with(tmp_path / "moved"))
    assert f"distill.shards: {tmp_path / 'moved'} holds no manifest.json; name the folder of a complete set" in message


def test_rounds_of_the_config_do_not_count(finished, config_with):
    config = load_run(config_with(finished / SET, synthesis__rounds=2, synthesis__batch_size=15, distill__steps=1))
    run_in_process(chain.main, config)
    assert config.num_rounds == 1
    assert config.student_path(0).exists() and not config.student_path(1).exists()


def test_content_of_the_sets_counts_and_not_their_folder(
    finished, config_with, tmp_path, error_of, monkeypatch, capsys
):
    path = config_with(finished / SET)
    run_in_process(distill.main, load_run(path))
    description = read_description(load_run(path).student_path(0))
    assert description["identity"]["shards"]["0"]["fingerprint"] == read_manifest(finished / SET)["fingerprint"]
    shutil.copytree(finished / SET, tmp_path / "moved")
    assert run_command(monkeypatch, distill.main, config_with(tmp_path / "moved")) == 0
    assert "student-0.safetensors is up to date" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "moved")
    manifest["shards"][0]["sha256"] = "0" * 64
    write_json(tmp_path / "moved/manifest.json", manifest)
    for stage in (distill, evaluate, report):
        assert "(shards.0: the images changed); nothing was changed" in error_of(stage, config_with(tmp_path / "moved"))


def test_sets_of_several_teachers_make_one_pool(finished, config_with, tmp_path, teacher_weights):
    other = tiny_config(tmp_path / "other", **with_weights(teacher_weights, seed=1))
    run_in_process(synthesize.main, other)
    pixels, labels = pool_of(load_run(config_with(finished / SET, other.round_folder(0))))
    sets = [ShardSet([folder]) for folder in (finished / SET, other.round_folder(0))]
    assert torch.equal(pixels, torch.cat([images.batch(range(60)) for images in sets]))
    assert torch.equal(labels, torch.cat([images.labels for images in sets]))


def test_labels_follow_the_order_of_the_runs_classes(some_classes, config_with):
    config = load_run(config_with(some_classes, classes=[4, 7, 1]))
    _, labels = pool_of(config)
    assert labels.tolist() == [{0: 1, 1: 2, 2: 0}[label] for label in ShardSet([some_classes]).labels.tolist()]
    run_in_process(chain.main, config)
    assert json.loads(config.evaluation_path(0).read_text())["class_titles"] == ["4", "7", "1"]


def test_sets_of_other_classes_add_up(some_classes, config_with, tmp_path, teacher_weights):
    other = tiny_config(tmp_path / "other", **with_weights(teacher_weights, classes=[1, 2], synthesis__num_images=30))
    run_in_process(synthesize.main, other)
    _, labels = pool_of(load_run(config_with(some_classes, other.round_folder(0), classes=[1, 2, 4, 7])))
    assert labels.bincount().tolist() == [20 + 15, 15, 20, 20]


def changed(folder: Path, target: Path, **values) -> Path:
    """A copy of a set whose manifest has other values."""
    shutil.copytree(folder, target)
    manifest = read_manifest(target) | values
    write_json(target / "manifest.json", manifest | {"fingerprint": fingerprint(manifest["identity"])})
    return target


def test_what_does_not_fit_the_run_is_refused(finished, some_classes, config_with, tmp_path, error_of):
    color = changed(finished / SET, tmp_path / "color", shape=[3, 8, 8])
    many = changed(finished / SET, tmp_path / "many", identity={"images": {"num_classes": 1000}})
    titled = changed(finished / SET, tmp_path / "titled", class_titles=["zero", *map(str, range(1, 10))])
    names = tmp_path / "names.txt"
    names.write_text("".join(f"n{i} class {i}\n" for i in range(10)))
    refused = [
        (color, {}, "color holds images of (C, H, W) = (3, 8, 8), the `images` section says (1, 8, 8)"),
        (many, {}, "many is of a teacher of 1000 classes, images.num_classes=10"),
        (some_classes, {}, "no set has images of 0 (0), 2 (2), 3 (3), 5 (5), 6 (6) and 2 more; add one that has"),
        (some_classes, {"classes": [7, 1]}, "has images of classes that the run has not: 4 (4); add them to `classes`"),
        (titled, {"data__class_names": str(names)}, "calls class 0 'zero', the run 'class 0'; are the classes"),
        (finished / "shards/tiny", {}, f"holds no manifest.json; name its rounds: {finished / SET}"),
        (tmp_path / "none", {}, "none holds no manifest.json; name the folder of a complete set"),
        (finished / SET, {"distill__batch_size": 61}, "distill.batch_size: 61 is larger than the 60 images of distill"),
    ]
    for folder, overrides, message in refused:
        for stage in (distill, chain, estimate):
            assert message in error_of(stage, config_with(folder, **overrides))
    for other in (f"{finished / SET}/", f"{finished}/./{SET}", os.path.relpath(finished / SET)):
        twice = config_with(finished / SET, other)
        assert f"distill.shards: {other!r} is empty or named twice" in error_of(distill, twice)


def test_damaged_sets_are_refused(finished, config_with, tmp_path, error_of):
    shutil.copytree(finished / SET, tmp_path / "set")
    tar, path = tmp_path / "set/train/0003-00000.tar", config_with(tmp_path / "set")
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    message = error_of(distill, path)
    assert f"{tar} was altered" in message and f"remove {tmp_path / 'set'} and make or fetch it again" in message
    tar.write_bytes(content[:-1])
    assert f"{tar} has" in (message := error_of(distill, path)) and "make or fetch it again" in message


def test_dry_run_and_estimate_know_that_nothing_is_made(finished, config_with, monkeypatch, capsys):
    path = config_with(finished / SET)
    assert run_command(monkeypatch, chain.main, path, "--dry-run") == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert lines[1] == f"synthesize  nothing: 60 images exist in {finished / SET}"
    assert [line.split()[0] for line in lines] == ["teacher", "synthesize", "distill", "evaluate", "report"]
    assert run_command(monkeypatch, estimate.main, path) == 0
    text = capsys.readouterr().out
    assert "distillation" in text and "synthesis  " not in text and "disk" not in text


def test_a_set_at_an_address_makes_the_same_student(finished, config_with, tmp_path, monkeypatch, capsys):
    with serve(finished) as server:
        path, url = config_with(f"{server.url}/{SET}"), f"{server.url}/{SET}"
        config = load_run(path)
        folder = config.given_folder(url)
        assert run_command(monkeypatch, chain.main, path, "--dry-run") == 0
        assert f"synthesize  nothing: {url} is fetched into {folder}" in capsys.readouterr().out
        assert server.requests == []
        assert run_command(monkeypatch, chain.main, path) == 0
        assert f"distill: fetching {url} into {folder}\ndistill: fetched 0.2 MiB\n" in capsys.readouterr().out
        assert len(server.requests) == 11
    assert folder.parent == tmp_path / "shards/.remote"
    assert same_tensors(config.student_path(0), tiny_config(finished).student_path(0))
    for stage in (chain, verify, estimate):  # without the server
        assert run_command(monkeypatch, stage.main, path) == 0
    assert run_command(monkeypatch, chain.main, path, "--dry-run") == 0
    assert "60 images exist" in (text := capsys.readouterr().out) and text.count("(exists)") == 3


def test_two_processes_fetch_a_set_once_and_share_it(finished, config_with):
    with serve(finished) as server:
        path = config_with(f"{server.url}/{SET}")
        assert start_stage("distill", path, num_ranks=2).wait() == [0, 0]
        assert len(server.requests) == len(set(server.requests)) == 11
    description = read_description(load_run(path).student_path(0))
    assert description["identity"]["shards"]["0"]["fingerprint"] == read_manifest(finished / SET)["fingerprint"]


def test_an_unfetched_set_is_told(config_with, error_of):
    path = config_with("http://127.0.0.1:9/set")
    assert "distill.shards: http://127.0.0.1:9/set is not fetched yet; run the stage `distill` first" in error_of(
        evaluate, path
    )


def test_a_run_can_learn_from_its_own_set_beside_another(finished, some_classes, tmp_path):
    """What the docs say about sets beside those of the run: make them first, then name them all."""
    path = copy_run(finished, tmp_path)
    both = [str(load_run(path).round_folder(0)), str(some_classes)]
    _, labels = pool_of(load_run(write_config(tmp_path, distill__shards=both)))
    assert labels.bincount().tolist() == [6, 26, 6, 6, 26, 6, 6, 26, 6, 6]
