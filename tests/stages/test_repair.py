"""Damage to a complete set costs the batches of the lost images, not the set."""

import shutil
import signal

import pytest
from killable import start_stage
from tiny_run import copy_run, digests, run_command, run_in_process, tiny_config, with_weights

from pipeline.data.damage import find_damage
from pipeline.data.parts import read_members
from pipeline.data.shards import CONFIG_FILE, MANIFEST, MANIFEST_COPY, read_manifest
from pipeline.run import load_run
from stages import distill, synthesize

SHARD = "train/0003-00000.tar"


@pytest.fixture
def damaged(finished, tmp_path):
    """The config file of a finished run, and the folder of its set, which a test may damage."""
    path = copy_run(finished, tmp_path)
    return path, load_run(path).round_folder(0)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def positions(folder, extension):
    """The position of the middle of a file of each image of the shard."""
    members = read_members(folder / SHARD).values()
    return [files[extension][0] + files[extension][1] // 2 for files in members]


def assert_repaired(folder, finished, excluded=(CONFIG_FILE,)):
    assert find_damage(folder) == []
    assert digests(folder, exclude=excluded) == digests(finished / "shards/tiny/0", exclude=excluded)


def batches_made(output):
    """The images that were lost, as the command says."""
    return [line for line in output.splitlines() if "again" in line]


@pytest.mark.parametrize("extension", ["png", "cls", "json"])
def test_one_damaged_image_costs_its_batch(damaged, finished, monkeypatch, capsys, extension):
    path, folder = damaged
    flip(folder / SHARD, positions(folder, extension)[1])
    assert run_command(monkeypatch, synthesize.main, path) == 0
    fault, made = batches_made(capsys.readouterr().out)
    assert f"{folder / SHARD} was altered" in fault
    assert made == "synthesize: lost images: 1; batches made again: 1 of 3"
    assert_repaired(folder, finished)


def test_a_damaged_header_costs_one_image(damaged, finished, monkeypatch, capsys):
    path, folder = damaged
    flip(folder / SHARD, positions(folder, "png")[1] // 512 * 512 - 512 + 3)
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert "lost images: 1; batches made again: 1 of 3" in capsys.readouterr().out
    assert_repaired(folder, finished)


def test_a_missing_and_a_cut_shard_are_made_again(damaged, finished, monkeypatch, capsys):
    path, folder = damaged
    (folder / SHARD).unlink()
    cut = folder / "train/0004-00000.tar"
    cut.write_bytes(cut.read_bytes()[:2000])
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert "batches made again: 3 of 3" in capsys.readouterr().out
    assert_repaired(folder, finished)


@pytest.mark.parametrize("name", [MANIFEST, MANIFEST_COPY, "README.md", "_info.json", "identity.json", CONFIG_FILE])
@pytest.mark.parametrize("damage", [lambda path: flip(path, 30), lambda path: path.unlink()])
def test_files_beside_the_shards_are_written_again(damaged, finished, monkeypatch, capsys, name, damage):
    path, folder = damaged
    damage(folder / name)
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert f"synthesize: {folder / name} was missing or damaged; it is written again" in capsys.readouterr().out
    assert_repaired(folder, finished)
    assert (folder / CONFIG_FILE).exists()


def test_a_whole_set_stays_as_it_is(damaged, finished, monkeypatch, capsys):
    path, folder = damaged
    before = digests(folder)
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert digests(folder) == before
    assert batches_made(capsys.readouterr().out) == []


def test_a_killed_repair_continues(damaged, finished):
    path, folder = damaged
    flip(folder / SHARD, positions(folder, "png")[0])
    for num_images in (5, 22):  # in the batch, and in the shard
        assert start_stage("synthesize", path, images_before_kill=num_images).wait() == [-signal.SIGKILL]
        assert len(find_damage(folder)) == 1
    assert start_stage("synthesize", path).wait() == [0]
    assert_repaired(folder, finished)


def test_images_of_another_set_are_no_repair(damaged, finished, tmp_path, teacher_weights, monkeypatch):
    path, folder = damaged
    other = tiny_config(tmp_path / "other", **with_weights(teacher_weights, seed=1))
    run_in_process(synthesize.main, other)
    shutil.copy(other.round_folder(0) / SHARD, folder / SHARD)
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert_repaired(folder, finished)


def test_a_repair_with_other_bytes_says_so(damaged, monkeypatch, capsys):
    path, folder = damaged
    before = read_manifest(folder)
    flip(folder / SHARD, positions(folder, "png")[1])
    monkeypatch.setattr("pipeline.synthesis.store.encode_image", encode_differently)
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert "synthesize: repaired shards with other bytes than before: 1 of 1; images" in capsys.readouterr().out
    after = read_manifest(folder)
    assert find_damage(folder) == []
    assert [entry["file"] for entry, old in zip(after["shards"], before["shards"], strict=True) if entry != old] == [
        SHARD
    ]
    assert after["fingerprint"] == before["fingerprint"]
    assert run_command(monkeypatch, distill.main, path) == 0


def encode_differently(image, image_format, quality):
    """As on a machine that makes other last bits."""
    from pipeline.data.codec import encode_image

    return encode_image(image // 2, image_format, quality)


def test_a_grown_set_is_repaired(finished, tmp_path, monkeypatch):
    path = copy_run(finished, tmp_path, synthesis__num_images=97)
    config = load_run(path)
    config.student_path(0).unlink()
    run_in_process(synthesize.main, config)
    folder = config.round_folder(0)
    before = digests(folder)
    for shard in ("train/0003-00000.tar", "train/0003-00001.tar"):  # of the set before and after
        (folder / shard).unlink()
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert digests(folder) == before
