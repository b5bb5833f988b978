"""Sets at an http address: fetched once, whole and checked, or refused with the reason."""

import re
import shutil
import socket
import ssl
import time
from pathlib import Path
from threading import Event

import pytest
import torch
from http_server import FolderServer, serve
from tiny_run import ROUND_IMAGES, digests, write_round

from pipeline.data import remote
from pipeline.data.damage import find_damage
from pipeline.data.parts import ShardError
from pipeline.data.remote import fetch_set, is_remote, local_folder
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import is_packed, read_manifest
from pipeline.distillation.config import DistillConfig
from pipeline.runtime.config import ConfigError
from pipeline.runtime.locks import exclusive_lock

SHARD = "/0/train/0003-00000.tar"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)


@pytest.fixture
def site(tmp_path, packed_round) -> Path:
    """A folder to serve, with a set in `0` that a test may damage."""
    shutil.copytree(packed_round[0], tmp_path / "site" / "0")
    return tmp_path / "site"


@pytest.fixture
def server(site):
    with serve(site) as server:
        yield server


def fetch(server: FolderServer, folder: Path) -> int:
    return fetch_set(f"{server.url}/0/", folder)


def test_a_fetched_set_has_the_same_bytes_and_is_not_fetched_again(server, site, tmp_path):
    folder = tmp_path / "cache"
    num_bytes = fetch(server, folder)
    fetched, served = digests(folder, exclude=[".lock"]), digests(site / "0")
    assert fetched == {name: served[name] for name in fetched}
    assert set(fetched) == {"manifest.json", *(name for name in served if name.startswith("train/"))}
    assert num_bytes == sum((folder / name).stat().st_size for name in fetched)
    assert len(server.requests) == len(fetched) == len(set(server.requests))
    server.requests.clear()
    assert fetch(server, folder) == 0
    assert server.requests == []


def test_every_image_is_there_once(server, packed_round, tmp_path):
    fetch(server, tmp_path / "cache")
    images = ShardSet([tmp_path / "cache"])
    numbers = [int(key.split("/")[1]) for key in images.keys]
    assert sorted(numbers) == list(range(ROUND_IMAGES))
    assert torch.equal(images.batch(range(ROUND_IMAGES)), packed_round[1][numbers])


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens addresses with curl, which is not installed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its tars
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_streams_every_image_once_from_the_address(server, site):
    import webdataset

    urls = [f"{server.url}/0/{entry['file']}" for entry in read_manifest(site / "0")["shards"]]
    reader = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__")
    assert sorted(int(key.split("/")[1]) for _, _, key in reader) == list(range(ROUND_IMAGES))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(512))


DAMAGES = {
    "missing": (Path.unlink, r"answers 404 \(File not found\); correct the address"),
    "cut": (truncate, r"differs from the manifest \(700 of \d+ bytes\): it was cut"),
    "longer": (extend, r"differs from the manifest \(\d+ of \d+ bytes\)"),
    "altered": (alter, r"differs from the manifest \(another SHA-256\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named_and_a_second_call_fetches_the_rest(server, site, tmp_path, damage, message):
    path, folder = site / SHARD[1:], tmp_path / "cache"
    intact = path.read_bytes()
    damage(path)
    with pytest.raises(ShardError, match=rf"^distill\.shards: {server.url}{SHARD} {message}"):
        fetch(server, folder)
    assert not is_packed(folder)
    assert not list(folder.rglob("*.tmp"))
    before = {f"/0/train/{path.name}" for path in folder.glob("train/*.tar")}
    assert SHARD not in before
    path.write_bytes(intact)
    server.requests.clear()
    fetch(server, folder)
    assert before.isdisjoint(server.requests)
    assert find_damage(folder) == []


def test_a_shard_that_was_damaged_here_is_fetched_again(server, tmp_path):
    folder = tmp_path / "cache"
    fetch(server, folder)
    (folder / "manifest.json").unlink()
    alter(folder / SHARD[3:])
    server.requests.clear()
    fetch(server, folder)
    assert server.requests == ["/0/manifest.json", SHARD]
    assert find_damage(folder) == []


@pytest.mark.parametrize("path", ["/0/manifest.json", SHARD])
def test_a_passing_error_of_the_server_is_tried_again(server, tmp_path, path):
    server.status[path] = [503, 429]
    fetch(server, tmp_path / "cache")
    assert server.requests.count(path) == 3
    assert find_damage(tmp_path / "cache") == []


@pytest.mark.parametrize("path", ["/0/manifest.json", SHARD])
def test_a_connection_that_breaks_off_is_tried_again(server, tmp_path, path):
    server.num_cut[path] = 2
    fetch(server, tmp_path / "cache")
    assert server.requests.count(path) == 3
    assert find_damage(tmp_path / "cache") == []


@pytest.mark.parametrize("path", ["/0/manifest.json", SHARD])
def test_a_connection_that_always_breaks_off_is_told(server, tmp_path, path):
    server.num_cut[path] = 9
    with pytest.raises(ShardError, match=rf"{server.url}{path} was cut after [\d,]+ of [\d,]+ bytes; run the same"):
        fetch(server, tmp_path / "cache")


def test_the_first_error_ends_the_pauses_of_the_others(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 60.0)
    server.status["/0/train/0002-00000.tar"] = [503] * 9
    server.status[SHARD] = [404]
    started = time.monotonic()
    with pytest.raises(ShardError, match="answers 404"):
        fetch(server, tmp_path / "cache")
    assert time.monotonic() - started < 30


def test_the_first_error_ends_transfers_between_two_chunks(server, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 512)
    is_over = Event()
    chunks = remote._read(f"{server.url}{SHARD}", 10**6, is_over)
    next(chunks)
    is_over.set()
    with pytest.raises(remote._StoppedTransfer):
        next(chunks)


def test_an_unknown_host_is_tried_once(tmp_path, monkeypatch):
    calls = []

    def fail(host, *arguments, **keywords):
        calls.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ShardError, match=r"Name or service not known\); correct the address, or fetch"):
        fetch_set("http://nowhere.invalid/0", tmp_path / "cache")
    assert calls == ["nowhere.invalid"]


def test_a_certificate_that_is_not_valid_is_permanent():
    assert remote._is_permanent(ssl.SSLCertVerificationError("self-signed certificate"))
    assert not remote._is_permanent(ssl.SSLError("connection reset"))
    assert not remote._is_permanent(socket.gaierror(socket.EAI_AGAIN, "try again"))


def test_shards_of_the_set_as_it_was_before_are_removed(server, tmp_path):
    folder = tmp_path / "cache"
    fetch(server, folder)
    (folder / "manifest.json").unlink()
    (folder / "train/0003-00000.tar").rename(folder / "train/0003-00009.tar")  # the set had another shard then
    fetch(server, folder)
    assert find_damage(folder) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://a.org/set?token=1", "ends with a query or a fragment"),
        ("https://a.org/set#part", "ends with a query or a fragment"),
        ("https:///set", "is no address"),
        ("https://[a/set", "is no address"),
        ("https://a.org:port/set", "is no address"),
    ],
)
def test_an_address_that_names_no_folder_is_refused(url, message):
    with pytest.raises(ConfigError, match=re.escape(f"shards: {url!r} {message}")):
        DistillConfig(steps=1, batch_size=2, lr=0.1, shards=(url,))


def test_a_lasting_error_of_the_server_is_told(server, tmp_path):
    server.status["/0/manifest.json"] = [500] * 9
    with pytest.raises(ShardError, match=r"manifest.json answers 500 .*; run the same command again, it fetches what"):
        fetch(server, tmp_path / "cache")
    assert len(server.requests) == remote.NUM_TRIES


def test_a_server_that_does_not_answer_is_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.05)
    server.delay_s = 0.5
    with pytest.raises(ShardError, match=r"manifest.json could not be read \(timed out\); run the same command again"):
        fetch(server, tmp_path / "cache")


def test_a_refused_connection_is_told(site, tmp_path):
    with serve(site) as server:
        url = server.url
    with pytest.raises(ShardError, match=rf"{url}/0/manifest.json could not be read \(.*refused"):
        fetch_set(f"{url}/0", tmp_path / "cache")


@pytest.mark.parametrize("content", ["<html>", "[]", '{"format": 1, "shards": [{"file": "../x.tar"}]}'])
def test_what_is_no_manifest_is_refused(server, site, tmp_path, content):
    (site / "0/manifest.json").write_text(content)
    with pytest.raises(ShardError, match=r"manifest.json is no manifest of a set \(.*\); correct the address"):
        fetch(server, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # nor a lock


def test_a_set_that_another_process_fetches_is_told(server, tmp_path):
    with (
        exclusive_lock(tmp_path / "cache/.lock"),
        pytest.raises(ValueError, match=f"another process works on {tmp_path / 'cache'}; wait for it"),
    ):
        fetch(server, tmp_path / "cache")


def test_a_full_disk_is_blamed_on_the_disk(server, tmp_path, fill_disk_at):
    path = tmp_path / "cache" / SHARD[3:]
    fill_disk_at(path)
    with pytest.raises(OSError, match=f"cannot write {path}: the disk or quota is full"):
        fetch(server, tmp_path / "cache")


def test_each_address_has_a_readable_folder_of_its_own(tmp_path):
    urls = ["https://a.org/set/0", "https://a.org/set/1", "http://a.org/set/0", "https://a.org:8000/set/0"]
    folders = {local_folder(url, tmp_path) for url in urls}
    assert len(folders) == 4
    assert all(folder.name.startswith("a.org-set-") for folder in folders)
    assert local_folder(urls[0] + "/", tmp_path) == local_folder(urls[0], tmp_path)
    assert is_remote(urls[0]) and not is_remote("shards/http/0")


def test_a_set_that_grew_on_the_server_stays_as_it_was_fetched(server, site, tmp_path):
    fetch(server, tmp_path / "cache")
    before = read_manifest(tmp_path / "cache")
    shutil.rmtree(site / "0")
    write_round(site / "0", first_image=7)
    fetch(server, tmp_path / "cache")
    assert read_manifest(tmp_path / "cache") == before
