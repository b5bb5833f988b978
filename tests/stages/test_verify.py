"""`verify` says of every file of a run whether it is whole, damaged, or not of the run."""

import random
import shutil
import struct
import zlib

import pytest
from PIL import Image
from tiny_run import copy_run, remove_manifest, run_command, run_in_process, write_config

from pipeline.data.damage import find_damage
from pipeline.data.shards import IDENTITY_FILE, MANIFEST, MANIFEST_COPY, read_manifest
from pipeline.identity import synthesis_identity
from pipeline.integrity.run import check_run
from pipeline.run import load_run
from pipeline.runtime.files import read_json, sha256_of, write_json
from stages import estimate, quality, report, synthesize, verify


@pytest.fixture(scope="module")
def complete(finished, tmp_path_factory):
    """A folder with a run that has a file of each kind, but for exports."""
    folder = tmp_path_factory.mktemp("complete")
    config = load_run(copy_run(finished, folder))
    for stage in (quality, estimate, report):
        run_in_process(stage.main, config)
    shutil.copy(config.student_path(0), folder / "student")
    return folder


@pytest.fixture
def run(complete, tmp_path):
    """The config file of a copy of that run."""
    path = copy_run(complete, tmp_path)
    return path


def states_of(path, kind):
    return {state.path: state.note for state in check_run(load_run(path)) if state.state == kind}


def test_a_finished_run_is_whole(run, monkeypatch, capsys):
    assert run_command(monkeypatch, verify.main, run) == 0
    config, output = load_run(run), capsys.readouterr().out
    assert output.splitlines()[1:] == [
        f"verify: {config.round_folder(0)}, 6 whole files",
        f"verify: {config.round_folder(0) / 'train'}, 10 whole files",
        f"verify: {config.checkpoints}, {len(list(config.checkpoints.glob('[!.]*')))} whole files",
    ]


def test_a_flip_in_any_file_is_named_or_harmless(run):
    config, draw = load_run(run), random.Random(0)
    before = [state.path for state in check_run(config)]
    assert {path.suffix for path in before} == {
        ".tar", ".json", ".md", ".yaml", ".safetensors", ".csv", ".html", ".jsonl", ".png"
    }  # fmt: skip
    for path in before:
        whole = path.read_bytes()
        for damage in (flipped(whole, draw), whole[: draw.randrange(len(whole))], whole + b"x", b""):
            path.write_bytes(damage)
            damaged = states_of(run, "damaged")
            named = [note for note in damaged.values() if str(path) in note]
            assert named or is_harmless(path, whole, damage), f"{path}: {damaged}"
        path.write_bytes(whole)
    assert states_of(run, "damaged") == {}


def flipped(content, draw):
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def is_harmless(path, whole, damage):
    """Whether what is read of a file is the same."""
    if path.suffix == ".json":
        changed = read_json(path)
        path.write_bytes(whole)
        return read_json(path) == changed
    if path.suffix == ".jsonl":  # a log that ends between two lines can be that of a killed run
        return whole.startswith(damage) and damage[-1:] in (b"", b"\n")
    return path.suffix == ".png" and damage == whole + b"x"  # behind the end of the picture


def test_missing_files_are_named(run, error_of):
    folder = load_run(run).round_folder(0)
    for name in ("train/0003-00000.tar", MANIFEST, MANIFEST_COPY, "README.md"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        assert f"{folder / name} is missing; run the stage `synthesize` again" in error_of(verify, run)
        (folder / name).write_bytes(content)


def test_a_damaged_file_is_an_error_that_names_all(run, error_of):
    config = load_run(run)
    for path in (config.student_path(0), config.evaluation_path(0), config.round_folder(0) / "train/0003-00000.tar"):
        path.write_bytes(path.read_bytes()[:-600])
    first, *lines = error_of(verify, run).splitlines()
    assert first == "error: 3 files of 27 damaged:"
    assert len(lines) == 3


def test_files_of_others_are_told_and_no_error(run, monkeypatch, capsys):
    config = load_run(run)
    folders = (config.checkpoints, config.shards / "backup", config.round_folder(0))
    for path in (folder / name for folder in folders for name in ("1.txt", "2.tar")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (config.checkpoints / "student-0.safetensors.tmp").touch()
    assert run_command(monkeypatch, verify.main, run) == 0
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if "1.txt" in line] == [
        f"verify: {folder / '1.txt'} is no output of this run, so it is not checked (and 1 more in its folder)"
        for folder in reversed(folders)
    ]
    assert "2.tar" not in output
    assert ".tmp" not in output


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"distill__lr": 0.5}, ["student-0.safetensors"]),
        ({"synthesis__inversion__lr": 0.5}, [MANIFEST, MANIFEST_COPY, "student-0.safetensors"]),
        ({"seed": 7}, [MANIFEST, MANIFEST_COPY, "student-0.safetensors", "teacher.safetensors"]),
    ],
)
def test_outputs_of_another_configuration_are_not_of_the_run(complete, tmp_path, overrides, names):
    path = copy_run(complete, tmp_path, **overrides)
    foreign = states_of(path, "foreign")
    assert set(names) <= {path.name for path in foreign}
    assert all("another" in note or "no output" in note for note in foreign.values())
    assert states_of(path, "damaged") == {}


def test_an_unlisted_shard_is_told(run):
    folder = load_run(run).round_folder(0)
    shutil.copy(folder / "train/0003-00000.tar", folder / "train/0003-00001.tar")
    assert list(states_of(run, "foreign")) == [folder / "train/0003-00001.tar"]


def test_a_manifest_that_was_written_again_with_other_facts_is_damaged(run):
    folder = load_run(run).round_folder(0)

    def assert_named(change):
        manifest = read_manifest(folder)
        change(manifest)
        for name in (MANIFEST, MANIFEST_COPY):
            write_json(folder / name, manifest)
        assert states_of(run, "damaged")
        remove_manifest(folder)
        for name in (MANIFEST, MANIFEST_COPY):
            write_json(folder / name, whole)

    whole = read_manifest(folder)

    def remove_a_shard(manifest):
        manifest["num_images"] -= manifest["shards"].pop()["count"]

    assert_named(lambda manifest: manifest["identity"].update(seed=5))
    assert_named(lambda manifest: manifest.update(image_format="webp"))
    assert_named(remove_a_shard)
    assert_named(lambda manifest: manifest["shards"][0]["keys"].reverse())
    assert_named(lambda manifest: manifest["shards"][0]["offsets"].reverse())
    assert find_damage(folder) == []


def test_whole_files_of_another_set_are_damaged_and_written_again(run, monkeypatch):
    folder = load_run(run).round_folder(0)
    whole = (folder / MANIFEST_COPY).read_bytes()
    for name in (MANIFEST_COPY, IDENTITY_FILE):
        write_json(folder / name, read_json(folder / name) | {"device": "another"})
    assert set(states_of(run, "damaged")) == {folder / MANIFEST_COPY, folder / IDENTITY_FILE}
    assert run_command(monkeypatch, synthesize.main, run) == 0
    assert states_of(run, "damaged") == {}
    assert (folder / MANIFEST_COPY).read_bytes() == whole


def test_a_student_in_place_of_the_teacher_is_not_of_the_run(run):
    config = load_run(run)
    shutil.copy(config.student_path(0), config.trained_teacher_path)
    assert config.trained_teacher_path in states_of(run, "foreign")


def test_a_picture_of_too_many_pixels_is_damaged(run):
    path = load_run(run).checkpoints / "preview.png"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)  # the size in the header, and its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    assert "900000000 pixels" in states_of(run, "damaged")[path]


def test_an_exported_network_without_its_facts_is_damaged(run):
    folder = load_run(run).checkpoints / "export"
    folder.mkdir()
    network, facts = folder / "student.onnx", folder / "export.json"
    network.write_bytes(b"x")
    assert f"{facts} is missing" in states_of(run, "damaged")[network]
    write_json(facts, {"files": {}})
    assert f"{facts} is damaged (files.student.onnx is missing)" in states_of(run, "damaged")[network]
    write_json(facts, {"files": {network.name: {"sha256": sha256_of(network)}}})
    assert states_of(run, "damaged") == {}
    network.unlink()
    assert (
        f"{network} is missing, which {facts} states; run the stage `export` again" in states_of(run, "damaged")[facts]
    )


def test_an_evaluation_that_was_written_again_without_its_config_is_damaged(run):
    path = load_run(run).evaluation_path(0)
    write_json(path, read_json(path) | {"config": {}})
    assert set(states_of(run, "damaged")) == {path.with_suffix(".csv")}


def test_parts_are_checked(finished, tmp_path, teacher_weights, error_of, fill_disk_at):
    path = write_config(tmp_path)
    config = load_run(path)
    config.checkpoints.mkdir(parents=True)
    config.trained_teacher_path.write_bytes(teacher_weights.read_bytes())
    fill_disk_at(config.round_folder(0) / MANIFEST_COPY)
    error_of(synthesize, path)
    parts = sorted((config.round_folder(0) / "parts").iterdir())
    assert set(parts) <= set(states_of(path, "whole"))
    parts[1].write_bytes(parts[1].read_bytes()[:6000])
    parts[2].rename(parts[2].with_name("000009.tar"))
    assert list(states_of(path, "damaged")) == [parts[1]]
    assert parts[2].with_name("000009.tar") in states_of(path, "foreign")
    other = write_config(tmp_path, synthesis__inversion__lr=0.5)
    assert parts[0] in states_of(other, "foreign")
    assert "was made with another configuration (synthesis.inversion.lr" in error_of(synthesize, other)
    write_json(config.round_folder(0) / IDENTITY_FILE, synthesis_identity(load_run(other), 0))
    assert f"{parts[0]} is of another configuration than identity.json beside it states; remove it" in error_of(
        synthesize, other
    )


def test_nothing_to_verify_is_an_error(tmp_path, error_of):
    assert "there is nothing to verify yet" in error_of(verify, write_config(tmp_path))
