"""Files that are complete or absent: written under a temporary name, synced, then renamed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"
_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing; the name appears only when the block ends without an exception.

    The temporary name is derived from `path`, so what a killed process left behind is overwritten by the next try.
    Raises OSError with the path and the fix when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        _remove_quietly(temporary)
        if isinstance(error, OSError):
            raise _explained(error, path) from error
        raise


def _explained(error: OSError, path: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "the disk or quota is full: free space and run the same command again; finished parts are kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        fix = "the folder cannot be written: check its permissions, or set shards_dir / checkpoints_dir"
    else:
        fix = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"cannot write {path}: {fix}")


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):  # the error that led here is the one to report
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
