"""Files are complete or absent, and a failed write names the path and the fix."""

import errno
import os

import pytest

from pipeline.runtime.files import (
    atomic_file,
    atomic_folder,
    read_json,
    remove_file,
    temporary_path,
    write_json,
    write_text,
)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_no_file(tmp_path, failure):
    path = tmp_path / "folder" / "result.bin"
    with pytest.raises(failure), atomic_file(path) as file:
        file.write(b"half")
        raise failure
    assert list(path.parent.iterdir()) == []


def test_exception_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "earlier")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_final_name_appears_after_the_bytes_are_synced(tmp_path, monkeypatch):
    path, states = tmp_path / "result.txt", []
    real_fsync = os.fsync

    def fsync(descriptor):
        states.append((path.exists(), temporary_path(path).exists() and temporary_path(path).read_bytes()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "all of it")
    at_file_sync, at_folder_sync = states
    assert at_file_sync == (False, b"all of it")
    assert at_folder_sync == (True, False)


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
    path, other = tmp_path / "result.txt", tmp_path / "other.txt"
    other.write_text("of somebody else")
    temporary_path(path).symlink_to(other)
    write_text(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "of somebody else")
    assert not path.is_symlink()


def test_a_pipe_under_the_temporary_name_is_not_waited_for(tmp_path):
    path = tmp_path / "x.bin"
    os.mkfifo(temporary_path(path))
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_temporary_file_of_a_killed_process_is_overwritten(tmp_path):
    path = tmp_path / "result.txt"
    temporary_path(path).write_bytes(b"x" * 10_000)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "a" / "folder"
    for text in ("first", "second"):
        with atomic_folder(path) as folder:
            (folder / text).write_text(text)
        assert [file.name for file in path.iterdir()] == [text]
        assert list(path.parent.iterdir()) == [path]


def write_folder(path, name):
    with atomic_folder(path) as folder:
        (folder / name).touch()


def test_failed_folder_keeps_the_former_one(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    write_folder(path, "first")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        assert [file.name for file in path.iterdir()] == ["first"]
        raise KeyboardInterrupt
    real_replace = os.replace

    def replace(source, target):
        if source == temporary_path(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="cannot write"):
        write_folder(path, "second")
    assert list(tmp_path.rglob("*")) == [path, path / "first"]


@pytest.mark.parametrize("has_new", [False, True])
def test_former_folder_of_a_killed_process_is_settled(tmp_path, has_new):
    former, path = tmp_path / "folder.former", tmp_path / "folder"
    write_folder(former, "first")
    if has_new:
        write_folder(path, "second")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [path, path / ("second" if has_new else "first")]


@pytest.mark.parametrize("size", [3, 1_000_000])  # less and more than the buffer of a file object
def test_full_disk_raises_and_keeps_the_earlier_file(tmp_path, fill_disk_at, size):
    path = tmp_path / "result.bin"
    path.write_bytes(b"earlier")
    fill_disk_at(path)
    with pytest.raises(OSError, match=f"cannot write {path}: the disk or quota is full: free space") as caught:
        write_text(path, "x" * size)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_sync_raises_and_keeps_the_earlier_file(tmp_path, monkeypatch):
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
def test_file_in_place_of_the_folder_raises(tmp_path, below):
    (tmp_path / "folder").write_text("a file")
    path = tmp_path / "folder" / below
    with pytest.raises(OSError, match=f"cannot write {path}: .*, or set shards_dir"):
        write_text(path, "new")
    assert (tmp_path / "folder").read_text() == "a file"


def test_folder_without_write_permission_raises(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):  # in place of permissions, which root does not need
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pipeline.runtime.files.open", refuse, raising=False)
    path = tmp_path / "result.txt"
    with pytest.raises(PermissionError, match=f"cannot write {path}: check the perm"):
        write_text(path, "new")


def test_file_that_cannot_be_removed_is_named_with_the_fix(tmp_path, monkeypatch):
    path = tmp_path / "result.txt"
    path.symlink_to("nowhere")
    remove_file(path)
    remove_file(path)
    assert list(tmp_path.iterdir()) == []

    def refuse(path, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    remove_file(path)
    path.touch()
    with pytest.raises(OSError, match=f"cannot write {path}: its file system is read-only"):
        remove_file(path)


def test_json_of_nan_raises(tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_json_share_a_line_and_strings_stay(tmp_path):
    value = {
        "matrix": [[1, 2], [3, 4.5]],
        "text": 'a "list": [1, 2]',
        "names": ["a b", "c"],
        "empty": [],
        "none": [None],
    }
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert "\n  [1,2],\n" in (tmp_path / "value.json").read_text()
