"""A set of images grows: what exists stays, the rest is made, and a killed growth loses nothing."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from killable import start_stage
from tiny_run import (
    copy_run,
    digests,
    modification_times,
    run_command,
    run_in_process,
    tiny_config,
    with_weights,
    write_config,
)

from pipeline.data import growth
from pipeline.data.damage import find_damage
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import CONFIG_FILE, read_manifest
from pipeline.identity import synthesis_identity
from pipeline.resolve import resolve
from pipeline.run import load_run
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import fingerprint
from pipeline.session import open_session
from stages import chain, distill, evaluate, report, synthesize

GROWN = {"synthesis__num_images": 97}  # 37 more, in batches of 18 and 19
CPU = torch.device("cpu")


def with_teacher(folder: Path, finished: Path, **overrides) -> Path:
    """The config file of a run that has its teacher alone."""
    path = copy_run(finished, folder, **overrides)
    shutil.rmtree(folder / "shards")
    load_run(path).student_path(0).unlink()
    return path


@pytest.fixture(scope="module")
def grown(finished, tmp_path_factory) -> Path:
    """A folder with the set of the finished run, grown from 60 to 97 images, and no student."""
    folder = tmp_path_factory.mktemp("grown")
    path = copy_run(finished, folder, **GROWN)
    load_run(path).student_path(0).unlink()
    run_in_process(synthesize.main, load_run(path))
    return folder


def shards(folder: Path) -> Path:
    return folder / "shards/tiny/0"


def stored(folder: Path) -> dict[str, bytes]:
    """The pixels of every image by its key."""
    images = ShardSet([shards(folder)])
    return {key: images[i][0].numpy().tobytes() for i, key in enumerate(images.keys)}


def test_existing_shards_stay_and_only_new_batches_are_made(finished, grown):
    before, after = digests(shards(finished) / "train"), digests(shards(grown) / "train")
    assert before.items() < after.items()
    small, large = stored(finished), stored(grown)
    assert small.items() < large.items()
    assert sorted(key.split("/")[1] for key in large) == [f"{i:06d}" for i in range(97)]
    lines = [json.loads(line) for line in (grown / "checkpoints/tiny/metrics.jsonl").read_text().splitlines()]
    assert {line["batch"] for line in lines if line["stage"] == "synthesize"} == {0, 1, 2, 3, 4}
    assert not (shards(grown) / "growth").exists()


def test_classes_stay_balanced(grown):
    counts = torch.bincount(ShardSet([shards(grown)]).labels)
    assert sorted(counts.tolist()) == [9] * 3 + [10] * 7


def test_manifest_and_identity_tell_the_sizes(finished, grown):
    manifest, former = read_manifest(shards(grown)), read_manifest(shards(finished))
    config = resolve(load_run(grown / "tiny.yaml"), CPU)
    assert config.synthesis.grown_from == (60,)
    assert manifest["fingerprint"] == fingerprint(synthesis_identity(config, 0)) != former["fingerprint"]
    assert manifest["num_images"] == sum(entry["count"] for entry in manifest["shards"]) == 97
    assert [(s["num_images"], s["fingerprint"]) for s in manifest["grown_from"]] == [(60, former["fingerprint"])]
    assert find_damage(shards(grown)) == []
    labels = [line for path in (shards(grown) / "train").glob("*.tar") for line in [path.name[:4]]]
    assert sorted(labels) == sorted(f"{label:04d}" for label in range(10) for _ in range(2))


def test_auto_is_decided_for_the_first_images(grown, monkeypatch):
    """A larger set could be worth compiling, which would make it another one."""
    num_pixels = {}

    def record(config, device, count, key):
        num_pixels[key] = count
        return config

    monkeypatch.setattr("pipeline.synthesis.config.resolve_acceleration", record)
    resolve(load_run(grown / "tiny.yaml"), CPU)
    assert num_pixels["synthesis.inversion"] == 60 * 4 * 64


def test_a_set_that_has_not_grown_keeps_its_identity(finished):
    assert "grown_from" not in read_manifest(shards(finished))["identity"]["synthesis"]


def test_a_second_run_changes_nothing(grown, tmp_path, capsys):
    config = load_run(copy_run(grown, tmp_path, **GROWN))
    before = modification_times(shards(tmp_path))
    run_in_process(synthesize.main, config)
    assert modification_times(shards(tmp_path)) == before
    assert "97 images" in (text := capsys.readouterr().out) and "(up to date)" in text


def test_the_stored_config_makes_the_same_set_elsewhere(finished, grown, tmp_path):
    path = with_teacher(tmp_path, finished)
    stored_config = load_run(shards(grown) / CONFIG_FILE)
    path.write_text((shards(grown) / CONFIG_FILE).read_text().replace(str(grown), str(tmp_path)))
    run_in_process(synthesize.main, load_run(path))
    assert stored_config.synthesis.grown_from == (60,)
    assert digests(shards(tmp_path), exclude=[CONFIG_FILE]) == digests(shards(grown), exclude=[CONFIG_FILE])


def test_a_set_grows_again(grown, tmp_path):
    config = load_run(copy_run(grown, tmp_path, synthesis__num_images=120))
    run_in_process(synthesize.main, config)
    assert stored(grown).items() < stored(tmp_path).items()
    assert torch.bincount(ShardSet([shards(tmp_path)]).labels).tolist() == [12] * 10
    assert [former["num_images"] for former in read_manifest(shards(tmp_path))["grown_from"]] == [60, 97]


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [5, 25, 45, 70])  # in the first and second part, and in shards of the pack
def test_growth_that_is_killed_keeps_the_smaller_set_and_continues(finished, grown, tmp_path, num_images):
    path = copy_run(finished, tmp_path, **GROWN)
    load_run(path).student_path(0).unlink()
    assert start_stage("synthesize", path, images_before_kill=num_images).wait() == [-signal.SIGKILL]
    assert find_damage(shards(tmp_path)) == []
    assert read_manifest(shards(tmp_path)) == read_manifest(shards(finished))
    run_in_process(distill.main, tiny_config(tmp_path))  # the smaller set, with its config
    assert start_stage("synthesize", write_config(tmp_path, **GROWN)).wait() == [0]
    assert digests(shards(tmp_path), exclude=[CONFIG_FILE]) == digests(shards(grown), exclude=[CONFIG_FILE])


@pytest.mark.parametrize("name", ["check_sizes", "write_manifest", "_move_texts", "remove_joined"])
def test_growth_that_is_killed_while_it_joins_continues(finished, grown, tmp_path, monkeypatch, name):
    config = load_run(copy_run(finished, tmp_path, **GROWN))

    def kill(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growth, name, kill)
        run_in_process(synthesize.main, config)
    assert find_damage(shards(tmp_path)) == []
    assert read_manifest(shards(tmp_path))["num_images"] == (97 if name in ("_move_texts", "remove_joined") else 60)
    run_in_process(synthesize.main, config)
    assert digests(shards(tmp_path), exclude=[CONFIG_FILE]) == digests(shards(grown), exclude=[CONFIG_FILE])


def test_growth_that_is_killed_while_what_joined_is_removed_can_grow_again(finished, tmp_path, monkeypatch):
    config = load_run(copy_run(finished, tmp_path, **GROWN))

    def kill(folder):
        (folder / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growth.shutil, "rmtree", kill)
        run_in_process(synthesize.main, config)
    run_in_process(synthesize.main, load_run(write_config(tmp_path, synthesis__num_images=120)))
    assert read_manifest(shards(tmp_path))["num_images"] == 120
    assert not list(shards(tmp_path).glob("growth*"))


def test_growth_that_has_yet_to_join_keeps_its_goal(error_of, finished, tmp_path, monkeypatch):
    config = load_run(copy_run(finished, tmp_path, **GROWN))

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growth, "_move_shards", kill)
        run_in_process(synthesize.main, config)
    for num_images in (85, 98):
        message = error_of(synthesize, write_config(tmp_path, synthesis__num_images=num_images))
        assert "Finish these images with synthesis.num_images=97 and raise it then, or remove" in message


def test_other_ranks_do_not_look_for_what_is_to_be_made(finished, tmp_path, monkeypatch):
    """On a network file system they may see other files; they get the answer of rank 0."""
    config = load_run(copy_run(finished, tmp_path))
    monkeypatch.setattr(synthesize, "next_set", lambda *arguments: pytest.fail("a rank but 0 has looked"))
    with open_session(config, DistributedContext(rank=1)) as session:
        synthesize.main(session, 0)


def test_three_processes_grow_the_same_set(finished, grown, tmp_path):
    path = copy_run(finished, tmp_path, **GROWN)
    assert start_stage("synthesize", path, num_ranks=3).wait() == [0, 0, 0]
    assert digests(shards(tmp_path), exclude=[CONFIG_FILE]) == digests(shards(grown), exclude=[CONFIG_FILE])


def test_growth_waits_for_synthesize(error_of, finished, tmp_path):
    path = copy_run(finished, tmp_path, **GROWN)
    load_run(path).student_path(0).unlink()
    assert f"{shards(tmp_path)} holds 60 of synthesis.num_images=97 images; run the stage `synthesize`" in error_of(
        distill, path
    )


@pytest.mark.parametrize("stage", [chain, evaluate, report], ids=lambda stage: stage.__name__)
def test_the_student_of_the_smaller_set_is_told(error_of, finished, tmp_path, stage):
    message = error_of(stage, copy_run(finished, tmp_path, **GROWN))
    student = tmp_path / "checkpoints/tiny/student-0.safetensors"
    assert f"{student} has learned from the 60 images that the set had before it grew" in message
    assert "Move this student away or remove it" in message


def test_the_grown_set_makes_another_student(grown, finished, tmp_path, monkeypatch, capsys):
    path = copy_run(grown, tmp_path, **GROWN)
    assert run_command(monkeypatch, chain.main, path) == 0
    student = load_run(path).student_path(0)
    assert student.read_bytes() != tiny_config(finished).student_path(0).read_bytes()
    assert "97 synthetic images" in capsys.readouterr().out
    assert run_command(monkeypatch, chain.main, path) == 0
    assert capsys.readouterr().out.count("up to date") == 5


REFUSED = {
    "shrinking": ({"synthesis__num_images": 50}, "A set grows, but does not shrink: set synthesis.num_images=60 or"),
    "a tiny batch": ({"synthesis__num_images": 69}, "synthesis.num_images: 69 adds 9 images to a set of 60; their"),
    "another seed": ({"synthesis__num_images": 97, "seed": 1}, "Set another `name`, or remove it (the command `clean`"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_growth_is_refused(error_of, finished, tmp_path, overrides, message):
    assert message in error_of(synthesize, copy_run(finished, tmp_path, **overrides))


def test_sets_of_several_rounds_do_not_grow(error_of, tmp_path, teacher_weights):
    rounds = with_weights(teacher_weights, synthesis__rounds=2, synthesis__batch_size=15, distill__batch_size=15)
    run_in_process(synthesize.main, tiny_config(tmp_path, **rounds))
    path = write_config(tmp_path, **rounds, synthesis__num_images=120)
    assert "The sets of several rounds do not grow: make more images under" in error_of(
        synthesize, path, "--round", "0"
    )
    path = write_config(tmp_path, **rounds, synthesis__grown_from=[30])
    assert "synthesis.grown_from: [30] needs rounds: 1" in error_of(synthesize, path)


def test_an_unfinished_set_is_finished_before_it_grows(error_of, finished, tmp_path):
    path = with_teacher(tmp_path, finished)
    assert start_stage("synthesize", path, images_before_kill=30).wait() == [-signal.SIGKILL]
    message = error_of(synthesize, write_config(tmp_path, **GROWN))
    assert "Finish these images with synthesis.num_images=60 and raise it then, or remove" in message


def test_an_unfinished_growth_keeps_its_goal(error_of, finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path, **GROWN)
    assert start_stage("synthesize", path, images_before_kill=30).wait() == [-signal.SIGKILL]
    message = error_of(synthesize, write_config(tmp_path, synthesis__num_images=98))
    assert f"{shards(tmp_path)}/growth was made with another configuration" in message
    assert "Finish these images with synthesis.num_images=97" in message
    assert run_command(monkeypatch, synthesize.main, write_config(tmp_path)) == 0  # the smaller set is complete
    assert len(list((shards(tmp_path) / "growth/parts").glob("*.tar"))) == 1
