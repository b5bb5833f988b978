"""Locks: one process at a time has a folder; what was made for a lock alone is removed."""

import errno
import os

import pytest

from pipeline.runtime.locks import exclusive_lock


def test_lock_that_stays_alone_is_removed_with_its_folders(tmp_path):
    (tmp_path / "existing").mkdir()
    with pytest.raises(RuntimeError), exclusive_lock(tmp_path / "existing/new/run/.lock"):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "existing"]


def test_lock_beside_an_output_stays(tmp_path):
    with exclusive_lock(tmp_path / "run/.lock"):
        (tmp_path / "run/output").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"run", "output", ".lock"}
    with exclusive_lock(tmp_path / "run/.lock"):
        pass


def test_lock_that_its_holder_removes_meanwhile_raises(tmp_path, monkeypatch):
    path = tmp_path / "run/.lock"
    monkeypatch.setattr("fcntl.flock", lambda file, operation: path.unlink())
    with pytest.raises(ValueError, match=f"another process works on {tmp_path / 'run'}"), exclusive_lock(path):
        pytest.fail("a second process could lock another file of this name")


def fail_with(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


def test_nothing_is_locked_on_a_read_only_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.open", fail_with(errno.EROFS))
    with exclusive_lock(tmp_path / "run/.lock"):
        pass
    with pytest.raises(OSError, match="its own"), exclusive_lock(tmp_path / "run/.lock"):
        raise OSError(errno.EROFS, "its own")


def test_file_system_without_locks_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", fail_with(errno.ENOSYS))
    path = tmp_path / "run/.lock"
    with pytest.raises(OSError, match=f"cannot write {path}: its file system has no locks"), exclusive_lock(path):
        pass
