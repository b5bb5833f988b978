"""`ObjectStore`: copies of local folders at an address that fsspec knows, such as s3://BUCKET/PREFIX or sftp://HOST/PATH.

A copy that has its name is complete, as a local file is. Whether it is whole is checked when it is pulled.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import atomic_file
from pipeline.runtime.threads import background_threads
from pipeline.runtime.transfers import NUM_TRIES, StoreError, driver_errors, with_tries

EXTRA = "dreamdistill[object-store]"
# Files that are transferred at the same time, if the driver can.
NUM_CONNECTIONS = 8
CHUNK_BYTES = 1 << 20
# Protocols with which others see a file while it is written. In the others, a name appears with the last byte.
WRITTEN_IN_PLACE = ("file", "local", "ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs")

Value = TypeVar("Value")
# Raises ValueError when a file is damaged, or not the one that is asked for.
Check = Callable[[Path], object]


def check_store_address(url: str | None) -> None:
    """Raise ConfigError unless `url` is None or an address without a password, which would be printed and stored."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.password is not None or parts.query:
        raise ConfigError(
            "object_store: the address holds a password or a query, but it is printed and stored in files of the run; "
            "give it to the driver instead (for s3 in AWS_..., for ftp in FSSPEC_FTP_PASSWORD; docs/scaling.md)"
        )
    if not parts.scheme or not url.partition("://")[2]:
        raise ConfigError(f"object_store: {url!r} is no address; write it as s3://BUCKET/PREFIX")


class ObjectStore:
    """The copies of local `folders` under the address `url`, each folder below a name of its own.

    Methods take local paths, and raise StoreError when all tries fail.
    """

    def __init__(self, url: str, folders: Mapping[Path, str]) -> None:
        self._url, self._folders = url.rstrip("/"), folders
        self._connection: tuple[Any, str] | None = None
        self._unpushed: dict[Path, None] = {}  # in their order

    def address(self, path: Path) -> str:
        """The address of the copy of a local path."""
        return f"{self._url}/{self._below(path)}"

    def sizes(self, folder: Path) -> dict[Path, int]:
        """The bytes of each copy below a folder, by the local path."""

        @driver_errors()
        def find() -> dict[Path, int]:
            system, name = self._locate(folder)
            system.invalidate_cache()
            files = system.find(name, detail=True)
            return {folder / os.path.relpath(file, name): info["size"] for file, info in files.items()}

        return self._try("list", folder, find)

    def read(self, path: Path, max_bytes: int | None = None) -> bytes:
        """The content of a copy that exists, or only its first bytes."""

        @driver_errors()
        def read() -> bytes:
            system, name = self._locate(path)
            content: bytes = system.cat_file(name, start=None if max_bytes is None else 0, end=max_bytes)
            return content

        return self._try("read", path, read)

    def pull(self, path: Path, require_whole: Check) -> bool:
        """Get a file, which takes its name if it is whole; returns whether it is, and warns if it is not.

        Raises OSError when it cannot be written here, and ConfigError if `require_whole` does.
        """

        def download() -> None:
            with atomic_file(path) as file:
                for chunk in self._chunks(path):
                    file.write(chunk)
                file.flush()
                require_whole(Path(file.name))

        for _ in range(NUM_TRIES):
            try:
                self._try("read", path, download)
                return True
            except (StoreError, ConfigError):
                raise
            except ValueError:  # damaged on its way, or in the store
                continue
        warnings.warn(f"{self.address(path)} is damaged, so it is left out", stacklevel=2)
        return False

    def pull_all(self, checks: Mapping[Path, Check]) -> None:
        """Get several files, as `pull` does."""
        self._in_parallel(lambda path: self.pull(path, checks[path]), checks)

    def push(self, path: Path) -> None:
        """Store a copy of a file, in place of a former one."""
        self._try("write", path, driver_errors()(partial(self._upload, path)))
        self._unpushed.pop(path, None)

    def push_all(self, paths: Iterable[Path]) -> None:
        """Store copies of several files."""
        self._in_parallel(self.push, paths)

    def push_or_warn(self, path: Path) -> None:
        """As `push`, but if the store fails, warn, and leave the file to `push_rest`."""
        self._unpushed[path] = None
        try:
            self.push(path)
        except StoreError as error:
            warnings.warn(f"{error}; the work goes on, and the file is tried again later", stacklevel=2)

    def push_rest(self) -> None:
        """Store copies of the files for which the store has failed so far."""
        self.push_all([path for path in self._unpushed if path.exists()])
        self._unpushed.clear()

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove copies that exist."""
        self._in_parallel(self._remove, paths)

    def require_writable(self, folder: Path) -> None:
        """Raise StoreError unless the copy of a file below the folder can be stored and removed; there is no file."""
        probe = folder / ".probe"

        @driver_errors()
        def write() -> None:
            system, name = self._locate(probe)
            self._make_parent(system, name)
            system.pipe_file(name, b"Can the run be stored here?")

        self._try("write", probe, write)
        self._remove(probe)

    def _remove(self, path: Path) -> None:
        @driver_errors()
        def remove() -> None:
            system, name = self._locate(path)
            with suppress(FileNotFoundError):
                system.rm_file(name)

        self._try("remove", path, remove)

    def _upload(self, path: Path) -> None:
        system, name = self._locate(path)
        if not self._make_parent(system, name):
            system.put_file(str(path), name)
            return
        system.put_file(str(path), f"{name}.tmp")
        system.mv(f"{name}.tmp", name)

    def _make_parent(self, system: Any, name: str) -> bool:
        """Make the folder of a copy where there are folders; returns whether there are."""
        has_folders = urlsplit(self._url).scheme in WRITTEN_IN_PLACE
        if has_folders:  # s3fs would make the bucket
            system.makedirs(name.rpartition("/")[0], exist_ok=True)
        return has_folders

    def _chunks(self, path: Path) -> Iterator[bytes]:
        with driver_errors():
            system, name = self._locate(path)
            source = system.open(name, "rb")
        with source:
            while True:
                with driver_errors():
                    chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def _try(self, verb: str, path: Path, transfer: Callable[[], Value]) -> Value:
        return with_tries(f"{verb} {self.address(path)}", transfer, self._disconnect)

    def _disconnect(self) -> None:
        self._connection = None  # that of some drivers stays unusable after an error

    def _locate(self, path: Path) -> tuple[Any, str]:
        """The file system of the driver, and the name in it of the copy of a local path."""
        self._connection = connection = self._connection or self._connect()  # other threads may set it to None
        system, root = connection
        return system, f"{root.rstrip('/')}/{self._below(path)}"

    def _connect(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            connection: tuple[Any, str] = url_to_fs(self._url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:  # no fsspec, no driver, or no such protocol
            fix = f"run `pip install '{EXTRA}'` and install the driver, such as s3fs for s3"
            raise StoreError(f"object_store: {self._url} cannot be used ({error}); {fix}") from error
        return connection

    def _below(self, path: Path) -> str:
        folder, name = next(item for item in self._folders.items() if path.is_relative_to(item[0]))
        return (Path(name) / path.relative_to(folder)).as_posix()

    def _in_parallel(self, transfer: Callable[[Path], object], paths: Iterable[Path]) -> None:
        """Transfer files in threads; one after the other if the driver has one connection."""
        remaining = list(paths)
        if not remaining:
            return
        system, _ = self._try("open", remaining[0], driver_errors()(partial(self._locate, remaining[0])))
        if not system.async_impl:
            for path in remaining:
                transfer(path)
            return
        with background_threads(NUM_CONNECTIONS) as threads:
            list(threads.map(transfer, remaining))
