"""A run with an object store continues on any machine: what one has made, another one gets."""

import hashlib
import shutil
import signal
from pathlib import Path

import pytest
from killable import start_stage
from s3_server import BUCKET, replace_object, serve_s3, stored
from tiny_run import copy_run, digests, run_command, with_weights, write_config

from pipeline.data.shards import CONFIG_FILE
from pipeline.distillation.state import write_state
from pipeline.identity import student_identity, synthesis_identity
from pipeline.run import load_run
from pipeline.runtime import transfers
from pipeline.runtime.object_store import ObjectStore
from pipeline.synthesis import batches
from stages import chain, distill, synthesize

pytestmark = pytest.mark.filterwarnings("default::UserWarning")  # commands show them
SET, SHARD = "shards/tiny/0", "train/0003-00000.tar"


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as environment:
        yield environment


@pytest.fixture
def made(monkeypatch):
    """The batches that this process inverts, by their index."""
    indices, invert_batch = [], batches.invert_batch

    def counted(objective, spec, *arguments):
        indices.append(spec.index)
        return invert_batch(objective, spec, *arguments)

    monkeypatch.setattr(batches, "invert_batch", counted)
    monkeypatch.setattr(transfers, "PAUSE_S", 0.0)
    return indices


@pytest.fixture
def machine(teacher_weights, tmp_path):
    """A function that returns the config file of a machine with an empty disk; all have the same store."""
    store = tmp_path / "store"
    return lambda name, url=f"file://{store}", **overrides: write_config(
        tmp_path / name, **with_weights(teacher_weights, object_store=url, **overrides)
    )


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def set_of(folder: Path) -> dict[str, str]:
    """The digests of the set of round 0; `config.yaml` names the folders of the machine."""
    return digests(folder / SET, exclude=[CONFIG_FILE])


def assert_stored(tmp_path: Path, machine: str) -> None:
    assert digests(tmp_path / "store" / SET) == digests(tmp_path / machine / SET)


@pytest.mark.slow
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_killed_synthesis_continues_on_an_empty_machine(
    machine, made, finished, s3, tmp_path, monkeypatch, capsys, is_damaged
):
    prefix = f"{tmp_path.name}/{SET}/"
    url = f"s3://{BUCKET}/{tmp_path.name}"
    killed = start_stage("synthesize", machine("first", url), images_before_kill=45, variables=s3)
    assert killed.wait() == [-signal.SIGKILL]
    parts = stored(prefix)
    assert sorted(parts) == ["parts/000000.tar", "parts/000001.tar"]
    if is_damaged:
        replace_object(f"{prefix}parts/000001.tar", flip(parts["parts/000001.tar"]))
    assert run_command(monkeypatch, synthesize.main, machine("second", url)) == 0
    assert (f"{prefix}parts/000001.tar is damaged, so it is left out" in capsys.readouterr().err) == is_damaged
    assert made == ([1, 2] if is_damaged else [2])
    assert set_of(tmp_path / "second") == set_of(finished)
    copies = {name: hashlib.sha256(content).hexdigest() for name, content in stored(prefix).items()}
    assert copies == digests(tmp_path / "second" / SET)


@pytest.mark.slow
def test_a_part_that_is_damaged_here_comes_back(machine, made, finished, tmp_path, monkeypatch):
    path = machine("first")
    assert start_stage("synthesize", path, images_before_kill=45).wait() == [-signal.SIGKILL]
    part = tmp_path / "first" / SET / "parts/000001.tar"
    part.write_bytes(part.read_bytes()[:1000])
    assert run_command(monkeypatch, synthesize.main, path) == 0
    assert made == [2]
    assert set_of(tmp_path / "first") == set_of(finished)


@pytest.mark.slow
def test_hosts_with_a_disk_each_share_the_work(machine, finished, tmp_path):
    disks = [tmp_path / "host0", tmp_path / "host1"]
    path = machine("config", shards_dir="shards", checkpoints_dir="checkpoints")
    for disk in disks:
        disk.mkdir()
    assert start_stage("run", path, num_ranks=2, disks=disks).wait(timeout_s=240) == [0, 0]
    assert set_of(disks[0]) == set_of(disks[1]) == set_of(finished)
    assert (disks[0] / "checkpoints/tiny/report.html").exists()
    students = [digests(disk / "checkpoints/tiny")["student-0.safetensors"] for disk in disks]
    assert students[0] == students[1]


@pytest.mark.slow
def test_a_finished_run_is_complete_on_any_machine(finished, tmp_path, monkeypatch, capsys):
    url = f"file://{tmp_path}/store"
    assert run_command(monkeypatch, chain.main, copy_run(finished, tmp_path / "first", object_store=url)) == 0
    assert_stored(tmp_path, "first")
    networks = {"teacher.safetensors", "teacher.json", "student-0.safetensors"}
    copies = digests(tmp_path / "store/checkpoints/tiny")
    assert copies.keys() == networks
    capsys.readouterr()
    second = write_config(tmp_path / "second", object_store=url)
    assert run_command(monkeypatch, chain.main, second) == 0
    output = capsys.readouterr().out
    assert f"got {tmp_path}/second/{SET} from file://{tmp_path}/store/{SET}" in output
    assert output.count("up to date") == 3
    assert_stored(tmp_path, "second")
    assert copies.items() <= digests(tmp_path / "second/checkpoints/tiny").items()
    config = load_run(second)
    for path in (config.round_folder(0) / "train/0003-00000.tar", config.round_folder(0) / "README.md"):
        path.unlink()
    assert run_command(monkeypatch, distill.main, second) == 0  # gets what is missing
    assert_stored(tmp_path, "second")


def test_damaged_and_lost_copies_are_made_again(machine, made, finished, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store" / SET
    shutil.copytree(finished / SET, store)
    (store / SHARD).write_bytes(flip((store / SHARD).read_bytes()))
    (store / "README.md").write_bytes(flip((store / "README.md").read_bytes()))
    (store / "train/0004-00000.tar").unlink()
    (store / "manifest.json").write_text("{}")
    assert run_command(monkeypatch, synthesize.main, machine("second")) == 0
    assert capsys.readouterr().err.count("is damaged, so it is left out") == 2
    assert set_of(tmp_path / "second") == set_of(finished)
    assert_stored(tmp_path, "second")


@pytest.mark.slow
def test_a_set_grows_in_the_store(machine, made, finished, tmp_path, monkeypatch):
    shutil.copytree(finished / SET, tmp_path / "first" / SET)
    shutil.copytree(finished / SET, tmp_path / "stale" / SET)
    first, grown = machine("first"), {"synthesis__num_images": 97}
    assert run_command(monkeypatch, synthesize.main, first) == 0
    assert_stored(tmp_path, "first")
    assert start_stage("synthesize", machine("first", **grown), images_before_kill=25).wait() == [-signal.SIGKILL]
    store = tmp_path / "store" / SET
    assert [path.name for path in (store / "growth/parts").iterdir()] == ["000003.tar"]
    assert run_command(monkeypatch, synthesize.main, machine("second", **grown)) == 0
    assert made == [4]
    assert set_of(tmp_path / "second") == set_of(tmp_path / "store")
    for name in ("first", "stale"):
        assert run_command(monkeypatch, synthesize.main, machine(name, **grown)) == 0
        assert set_of(tmp_path / name) == set_of(tmp_path / "store")
    assert made == [4]


def test_a_training_continues_on_another_machine(machine, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / SET, tmp_path / "store" / SET)
    settings = {"distill__save_every_s": 0, "distill__log_every": 1}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(distill, "save_classifier", stop)
        assert run_command(patched, distill.main, machine("first", **settings)) == 130
    state = tmp_path / "store/checkpoints/tiny/student-0.state"
    assert state.read_bytes() == (tmp_path / "first/checkpoints/tiny/student-0.state").read_bytes()
    second = machine("second", **settings)
    other = tmp_path / "second/checkpoints/tiny/student-0.state"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of a machine that did less\n")
    assert run_command(monkeypatch, distill.main, second) == 0
    assert "distill: resumed at step" in capsys.readouterr().out
    name = "checkpoints/tiny/student-0.safetensors"
    assert (tmp_path / "second" / name).read_bytes() == (finished / name).read_bytes()
    assert digests(tmp_path / "store/checkpoints/tiny").keys() == {"student-0.safetensors"}


def test_a_state_of_another_training_stays_as_it_is(machine, tmp_path, error_of):
    for seed, folder in enumerate(("first", "store")):
        write_state(
            tmp_path / folder / "checkpoints/tiny/student-0.state", {"identity": f'{{"seed": {seed}}}', "step": 1}
        )
    assert "student-0.state is of another configuration" in error_of(distill, machine("first"))


def test_a_store_that_fails_for_a_while_stops_nothing(machine, made, finished, tmp_path, monkeypatch, capsys):
    upload, num_failures = ObjectStore._upload, 6

    def fail_first_parts(self, path):
        nonlocal num_failures
        if path.suffix == ".tar" and num_failures:
            num_failures -= 1
            raise TimeoutError("no answer")
        upload(self, path)

    monkeypatch.setattr(ObjectStore, "_upload", fail_first_parts)
    assert run_command(monkeypatch, synthesize.main, machine("first")) == 0
    assert "/parts/000001.tar (no answer)" in capsys.readouterr().err
    assert made == [0, 1, 2]
    assert set_of(tmp_path / "first") == set_of(finished)
    assert_stored(tmp_path, "first")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["empty", "parts", "complete"])
def test_images_of_another_configuration_stay_as_they_are(machine, finished, tmp_path, error_of, monkeypatch, state):
    assert run_command(monkeypatch, synthesize.main, machine("first", seed=1)) == 0
    before = digests(tmp_path / "store")
    if state == "complete":
        shutil.copytree(finished / SET, tmp_path / "second" / SET)
    elif state == "parts":
        assert start_stage("synthesize", machine("second", None), images_before_kill=45).wait() == [-signal.SIGKILL]
    message = error_of(synthesize, machine("second"))
    assert "another configuration" in message or "seed" in message
    assert digests(tmp_path / "store") == before


@pytest.mark.slow
def test_an_unusable_store_stops_the_run_at_once(machine, s3, error_of, monkeypatch):
    assert "bucket does not exist" in error_of(chain, machine("first", "s3://nowhere/runs"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(transfers, "NUM_TRIES", 1)
    assert "127.0.0.1:9" in error_of(chain, machine("first", "s3://runs"))


def test_the_store_is_no_part_of_an_identity(machine):
    with_store, without = load_run(machine("first")), load_run(machine("first", None))
    assert synthesis_identity(with_store, 0) == synthesis_identity(without, 0)
    assert student_identity(with_store, 0) == student_identity(without, 0)
