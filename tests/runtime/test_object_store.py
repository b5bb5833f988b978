"""Copies in a store: they come back as they were, damage is noticed, and failures pass or are explained."""

import ftplib
from pathlib import Path

import pytest
from s3_server import BUCKET, serve_s3, stored
from tiny_run import digests

from pipeline.runtime import transfers
from pipeline.runtime.config import ConfigError
from pipeline.runtime.object_store import ObjectStore, check_store_address
from pipeline.runtime.transfers import StoreError


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(transfers, "PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as environment:
        yield environment


def write(folder: Path, names=("train/0.tar", "manifest.json")) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)


def open_store(url: str, folder: Path) -> ObjectStore:
    return ObjectStore(url, {folder: "shards/tiny"})


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {"file": f"file://{tmp_path}/store", "memory": f"memory://{tmp_path}"}.get(
        request.param, f"s3://{BUCKET}/{tmp_path.name}"
    )


def test_files_come_back_as_they_were(url, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here)
    store, other = open_store(f"{url}/", here), open_store(url, there)
    assert store.sizes(here) == {}
    store.push_all(here.rglob("*.*"))
    assert store.sizes(here) == {path: path.stat().st_size for path in here.rglob("*.*")}
    assert store.read(here / "manifest.json", 8) == b"manifest"
    other.pull_all({path: Path.read_bytes for path in other.sizes(there)})
    assert digests(there) == digests(here)
    other.remove([there / "manifest.json", there / "never stored"])
    assert list(store.sizes(here)) == [here / "train/0.tar"]


def test_a_copy_replaces_a_former_one(url, tmp_path):
    store, path = open_store(url, tmp_path), tmp_path / "manifest.json"
    for content in (b"longer before", b"after"):
        path.write_bytes(content)
        store.push(path)
    assert store.read(path) == b"after"
    assert list(store.sizes(tmp_path)) == [path]  # nothing under a temporary name


def test_a_store_is_probed_for_writing(s3, tmp_path):
    store = open_store(f"s3://{BUCKET}/probed", tmp_path)
    store.require_writable(tmp_path)
    assert stored("probed") == digests(tmp_path) == {}
    with pytest.raises(StoreError, match=r"cannot write s3://nowhere/shards/tiny/\.probe \(.*bucket does not exist"):
        open_store("s3://nowhere", tmp_path).require_writable(tmp_path)


def test_damaged_copies_are_left_out(tmp_path):
    store, path = open_store(f"memory://{tmp_path}", tmp_path), tmp_path / "0.tar"
    path.write_bytes(b"whole")
    store.push(path)
    path.unlink()

    def fail(arrived):
        raise ValueError(f"{arrived} is damaged")

    with pytest.warns(UserWarning, match=r"^memory://.*/shards/tiny/0\.tar is damaged, so it is left out$"):
        assert not store.pull(path, fail)
    assert digests(tmp_path) == {}


def test_failures_pass(tmp_path, monkeypatch):
    store, path = open_store(f"memory://{tmp_path}", tmp_path), tmp_path / "0.tar"
    path.write_bytes(b"whole")
    upload, num_failures = ObjectStore._upload, 2

    def fail_first(self, path):
        nonlocal num_failures
        num_failures -= 1
        if num_failures >= 0:
            raise ftplib.error_temp("421 too many connections")
        upload(self, path)

    monkeypatch.setattr(ObjectStore, "_upload", fail_first)
    store.push(path)
    num_failures = 3
    with pytest.warns(UserWarning, match=r"cannot write .* \(421 too many connections\); .* tried again later"):
        store.push_or_warn(path)
    num_failures = 3
    with pytest.raises(StoreError, match="421"):
        store.push_rest()
    path.write_bytes(b"newer")
    store.push_rest()
    assert store.read(path) == b"newer"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nothing://bucket", "Protocol not known: nothing.*pip install 'dreamdistill"),
        ("s3://runs", "cannot list s3://runs/shards/tiny .*127.0.0.1:9"),
        ("ftp://127.0.0.1:9/runs", "cannot list ftp://127.0.0.1:9/runs/shards/tiny .*refused"),
    ],
)
def test_unusable_stores_are_explained(url, reason, tmp_path, monkeypatch):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=f"^object_store: .*{reason}") as error:
        open_store(url, tmp_path).sizes(tmp_path)
    assert "\n" not in str(error.value)


def test_refused_credentials_are_explained(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on, it asks who calls
    with pytest.raises(StoreError, match=r"cannot list s3://runs/shards/tiny \(.*Access Key Id"):
        open_store("s3://runs", tmp_path).sizes(tmp_path)


def test_addresses_are_checked_and_hold_no_password():
    for url in (None, "s3://bucket/a/b", "sftp://user@host/path", "file:///data"):
        check_store_address(url)
    for url in ("bucket/prefix", "s3://", "", "://x"):
        with pytest.raises(ConfigError, match=r"^object_store: .*s3://BUCKET/PREFIX"):
            check_store_address(url)
    for url in ("ftp://user:hunter2@host/path", "s3://bucket?key=hunter2"):
        with pytest.raises(ConfigError, match="password") as error:
            check_store_address(url)
        assert "hunter2" not in str(error.value)
