"""Locks of folders that one process at a time works on."""

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from pipeline.runtime.files import explain_os_errors, make_folder

# Seconds between two tries to take a lock.
LOOK_EVERY_S = 1.0


@contextmanager
def exclusive_lock(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `path` as a lock; raises ValueError when another process still holds it after `wait_s` seconds.

    A killed process releases its lock, that of a lost machine stays for a while on a network file system. At the end,
    the lock and the folders that were made for it are removed if they hold nothing else. On a read-only file system,
    where no process can write, there is no lock.
    """
    folders = [folder for folder in path.parents if not folder.exists()]
    with _wait_for_lock(path, wait_s):
        try:
            yield
        finally:
            _remove_if_alone(path, folders)


def _wait_for_lock(path: Path, wait_s: float) -> AbstractContextManager[object]:
    """The locked file `path`, or nothing on a read-only file system."""
    gives_up_at = time.monotonic() + wait_s
    try:
        while (file := _open_locked(path)) is None:
            if time.monotonic() >= gives_up_at:
                raise ValueError(
                    f"another process works on {path.parent}; wait for it or end it (it outlives a killed make by some "
                    "seconds), or set another `name`"
                )
            time.sleep(LOOK_EVERY_S)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return nullcontext()
    return file


def _open_locked(path: Path) -> IO[bytes] | None:
    """The locked file `path`; None if another process holds it."""
    make_folder(path.parent)
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as opened, explain_os_errors(path):
        # Network file systems lock only files that are open for writing.
        file = opened.enter_context(path.open("ab"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # its holder has not removed it since it was opened
            opened.pop_all()
            return file
    return None


def _remove_if_alone(path: Path, folders: Iterable[Path]) -> None:
    """Remove a file that is alone in its folder, and those of the `folders` that are then empty."""
    with suppress(OSError):  # a folder that is not empty, or that does not exist anymore
        if os.listdir(path.parent) == [path.name]:
            path.unlink()
        for folder in folders:
            folder.rmdir()
