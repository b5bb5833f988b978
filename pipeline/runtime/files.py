"""Atomic files: written under a temporary name, synced, then renamed; so a file is complete or absent."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.runtime.digests import find_fault, seal, seal_text, unseal
from pipeline.runtime.form import check_object

Value = TypeVar("Value")
TEMPORARY_SUFFIX = ".tmp"
# Files whose results are remembered; a set of ImageNet's size has about a thousand shards.
CACHED_FILES = 1 << 14
_CHUNK_BYTES = 1 << 20
_JSON_STRING_OR_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\[\]{}"]*\]')


@contextmanager
def atomic_file(path: Path, writer: str = "") -> Iterator[IO[bytes]]:
    """Open `path` for writing; the name appears only when the block ends without an exception.

    The temporary name is derived from `path`, so the next attempt overwrites what a killed process left. If several
    processes may write the same file at once, each is named as the `writer` in its own. Raises OSError with the path
    and the fix when the folder cannot be written or the disk is full.
    """
    temporary = temporary_path(path, writer)
    with explain_os_errors(path):
        try:
            make_folder(path.parent)
            with open_new(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            _remove_quietly(temporary)
            raise


def open_new(path: Path) -> IO[bytes]:
    """Open a file for writing, in place of what has its name; a link is not followed, a pipe not waited for."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the name `path` when the block ends without an exception.

    It replaces a former folder of that name, which stays as it is if the block fails.
    """
    temporary, former = temporary_path(path), path.with_name(f"{path.name}.former")
    with explain_os_errors(path):
        _settle(former, path)  # after a kill
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            if path.exists():
                os.replace(path, former)  # no folder replaces one that holds files
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _settle(former, path)


def _settle(former: Path, path: Path) -> None:
    """Remove a former folder if a new one has taken its name `path`, else give it its name back."""
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
    elif former.exists():
        os.replace(former, path)


def temporary_path(path: Path, writer: str = "") -> Path:
    """The name of an incomplete file; a process that is killed while it writes leaves it behind."""
    return path.with_name(f"{path.name}{writer and f'.{writer}'}{TEMPORARY_SUFFIX}")


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents if they do not exist; raises OSError with the fix."""
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into one that names the path and the fix; errors about other files pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_about(error, path):
            raise
        raise OSError(error.errno, f"cannot write {path}: {_fix(error)}") from error


def _is_about(error: OSError, path: Path) -> bool:
    name = str(error.filename)
    return error.filename is None or name in map(str, (path, *path.parents)) or name.startswith(f"{path}.")


def _fix(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk or quota is full: free space and run the same command again; finished parts are kept"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file has the name of a folder: remove it, or set shards_dir / checkpoints_dir"
    if error.errno == errno.EROFS:
        return "its file system is read-only: write to another one (compare: --output), or work on a copy of the run"
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return "its file system has no locks: mount it with them (Lustre: flock), or set shards_dir / checkpoints_dir"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "check the permissions of the folder, or set shards_dir / checkpoints_dir"
    return error.strerror or str(error)


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):  # the error to report is the one that led here
        path.unlink()


def remove_file(path: Path) -> None:
    """Remove a file if it exists; raises OSError with the fix."""
    with explain_os_errors(path):
        if os.path.lexists(path):  # on a read-only file system, removing what does not exist is an error, too
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_sealed_text(path: Path, text: str) -> None:
    """Write `text` and, as a comment in its last line, its digest; atomically."""
    write_text(path, seal_text(text, path.suffix))


def write_json(path: Path, value: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Write `value` and its digest as a JSON object, atomically; with an indent, a list of numbers is one line."""
    text = json.dumps(seal(value), indent=indent, allow_nan=False)
    if indent is not None:
        text = _JSON_STRING_OR_NUMBERS.sub(_without_spaces, text)
    write_text(path, text + "\n")


def _without_spaces(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else re.sub(r"\s", "", match[0])


def is_whole(path: Path) -> bool:
    """Whether a file that `write_json` or `write_sealed_text` wrote exists and is not damaged."""
    return path.is_file() and find_fault(path.read_bytes(), path.suffix) is None


def require_sealed(path: Path, ending: str | None = None) -> None:
    """Raise ValueError unless such a file is whole; `ending` is that of its name if it has a temporary one."""
    if fault := find_fault(path.read_bytes(), ending or path.suffix):
        raise ValueError(f"{path} is damaged ({fault}); remove it and run the stage that writes it again")


def read_json(path: Path, check: Callable[[Any], None] = check_object) -> dict[str, Any]:
    """The JSON object that `write_json` wrote.

    Raises ValueError that names the file when it is damaged, or when `check` raises one.
    """
    try:
        value = unseal(path.read_bytes())
        check(value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the stage that writes it again") from error
    return value


def read_range(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer if it ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def cached_while_unchanged(compute: Callable[[Path], Value]) -> Callable[[Path], Value]:
    """A function of a file's content, cached while size and time stamp of the file stay the same."""

    @lru_cache(maxsize=CACHED_FILES)
    def cached(path: Path, size: int, mtime_ns: int) -> Value:
        return compute(path)

    @wraps(compute)
    def current(path: Path) -> Value:
        state = path.stat()
        return cached(path, state.st_size, state.st_mtime_ns)

    return current


@cached_while_unchanged
def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
