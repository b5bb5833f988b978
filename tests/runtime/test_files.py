import errno
import os
from pathlib import Path

import pytest

from pipeline.runtime.files import TEMPORARY_SUFFIX, atomic_file, write_json, write_text


def temporary_of(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_under_either_name(tmp_path, failure):
    path = tmp_path / "folder" / "result.bin"
    with pytest.raises(failure), atomic_file(path) as file:
        file.write(b"half")
        raise failure
    assert list(path.parent.iterdir()) == []


def test_an_exception_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "earlier")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_final_name_appears_only_after_the_bytes_are_synced(tmp_path, monkeypatch):
    path, seen = tmp_path / "result.txt", []
    real_fsync = os.fsync

    def fsync(descriptor):
        seen.append((path.exists(), temporary_of(path).exists() and temporary_of(path).read_bytes()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "all of it")
    of_the_file, of_the_folder = seen
    assert of_the_file == (False, b"all of it")
    assert of_the_folder == (True, False)


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "result.txt"
    temporary_of(path).write_bytes(b"x" * 10_000)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [3, 1_000_000])  # within and beyond the buffer of a file object
def test_a_full_disk_names_the_path_and_the_fix_and_keeps_the_earlier_file(tmp_path, size):
    path = tmp_path / "result.bin"
    path.write_bytes(b"earlier")
    temporary_of(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"cannot write {path}: the disk or quota is full: free space") as caught:
        write_text(path, "x" * size)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_sync_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "result.txt"
    write_text(path, "earlier")

    def fsync(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=f"cannot write {path}: the disk or quota is full"):
        write_text(path, "new")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("below", ["result.txt", "deeper/result.txt"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path, below):
    (tmp_path / "folder").write_text("a file")
    path = tmp_path / "folder" / below
    with pytest.raises(OSError, match=f"cannot write {path}: .*, or set shards_dir"):
        write_text(path, "new")
    assert (tmp_path / "folder").read_text() == "a file"


def test_a_folder_without_write_permission_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):  # root may write anywhere, so the refusal is played
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pipeline.runtime.files.open", refuse, raising=False)
    path = tmp_path / "result.txt"
    with pytest.raises(PermissionError, match=f"cannot write {path}: check the perm"):
        write_text(path, "new")


def test_json_refuses_what_other_readers_cannot_parse(tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
