"""Sets of images at an http or https address: each shard is fetched once, checked, and then read like any other.

The set needs its size on the disk, and training starts when all of it is there. In return an epoch holds every image
once, in a random order over all shards, and needs no network.
"""

import hashlib
import http.client
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from pipeline.data.manifest import SPLIT, parse_manifest
from pipeline.data.parts import ShardError
from pipeline.data.shards import MANIFEST, is_packed
from pipeline.runtime.config import ConfigError
from pipeline.runtime.files import atomic_file, sha256_of
from pipeline.runtime.locks import exclusive_lock
from pipeline.runtime.threads import background_threads

SCHEMES = ("http://", "https://")
# A server that sends nothing for so long is lost.
TIMEOUT_S = 30.0
# A transfer that fails is tried so often, with a pause between two tries.
NUM_TRIES, PAUSE_S = 3, 2.0
# Shards that are fetched at the same time.
NUM_CONNECTIONS = 8
# Between two chunks, a transfer looks whether another one has failed.
CHUNK_BYTES = 1 << 18
# The largest manifest that is fetched, far above that of a million images.
MAX_MANIFEST_BYTES = 1 << 30
# Answers of a server that can be another one in a moment: too many requests, and its own errors.
PASSING_STATUS = (429, *range(500, 600))
PERMANENT_FIX = "correct the address, or fetch the set yourself and name its folder"

Result = TypeVar("Result")


class _FailedTransfer(Exception):
    """A transfer that can succeed at another try; no OSError, since the disk is not to blame."""


class _StoppedTransfer(Exception):
    """A transfer that ends because another one has failed, or because the user interrupts."""


def is_remote(name: str) -> bool:
    """Whether `name` is an address and not a folder."""
    return name.startswith(SCHEMES)


def check_address(url: str) -> None:
    """Raise ConfigError unless `url` is the address of a folder, to which the names of files can be added."""
    try:
        parts = urllib.parse.urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an IPv6 address, a port that is no number
        has_host = False
    if not has_host:
        raise ConfigError(f"shards: {url!r} is no address; write it as https://HOST/FOLDER")
    if parts.query or parts.fragment:
        raise ConfigError(
            f"shards: {url!r} ends with a query or a fragment, to which the names of files cannot be added; name the "
            "address of the folder alone, or fetch the set yourself and name its folder"
        )


def local_folder(url: str, cache: Path) -> Path:
    """The folder of a fetched set: readable, and another one for each address."""
    parts = urllib.parse.urlsplit(url.rstrip("/"))
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.hostname}{parts.path}")
    return cache / f"{readable}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:8]}"


def folder_of_given(name: str, shards_dir: str) -> Path:
    """The folder of an item of `distill.shards`; one with an address is fetched into `SHARDS_DIR/.remote`."""
    return local_folder(name, Path(shards_dir) / ".remote") if is_remote(name) else Path(name)


def fetch_set(url: str, folder: Path) -> int:
    """Fetch the set at `url` into `folder`, unless it is there; returns the bytes that were fetched.

    The manifest is written last. A second call after a kill or an error fetches what is missing. Raises ShardError
    when the server or a file does not answer, and when a shard differs from the manifest; ValueError when another
    process fetches the set.
    """
    if is_packed(folder):
        return 0
    with exclusive_lock(folder / ".lock"):
        return _fetch(url.rstrip("/"), folder)


def _fetch(url: str, folder: Path) -> int:
    address, is_over = f"{url}/{MANIFEST}", Event()
    content = _with_tries(lambda: b"".join(_read(address, MAX_MANIFEST_BYTES, is_over)), is_over)
    try:
        entries = parse_manifest(content)["shards"]
    except ValueError as error:
        raise ShardError(f"distill.shards: {address} is no manifest of a set ({error}); correct the address") from error
    missing = [entry for entry in entries if not _is_fetched(folder, entry)]
    with background_threads(NUM_CONNECTIONS) as threads:
        transfers = [partial(_fetch_shard, url, folder, entry, is_over) for entry in missing]
        futures = [threads.submit(_with_tries, transfer, is_over) for transfer in transfers]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            is_over.set()  # the first error, or an interrupt, ends the others
            threads.shutdown(wait=False, cancel_futures=True)
    for future in done:
        future.result()
    listed = {folder / entry["file"] for entry in entries}
    for path in (folder / SPLIT).glob("*.tar"):
        if path not in listed:  # of the set as it was when an earlier call fetched a part of it
            path.unlink()
    with atomic_file(folder / MANIFEST) as file:
        file.write(content)
    num_bytes: int = sum(entry["bytes"] for entry in missing)
    return num_bytes + len(content)


def _is_fetched(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["file"]
    return path.is_file() and path.stat().st_size == entry["bytes"] and bool(sha256_of(path) == entry["sha256"])


def _fetch_shard(url: str, folder: Path, entry: Mapping[str, Any], is_over: Event) -> None:
    address, digest, num_bytes = f"{url}/{entry['file']}", hashlib.sha256(), 0
    with atomic_file(folder / entry["file"]) as file, closing(_read(address, entry["bytes"], is_over)) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            num_bytes += len(chunk)
            file.write(chunk)
        if num_bytes != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
            what = f"{num_bytes} of {entry['bytes']} bytes" if num_bytes != entry["bytes"] else "another SHA-256"
            raise _FailedTransfer(f"{address} differs from the manifest ({what}): it was cut, altered or replaced")


def _read(url: str, max_bytes: int, is_over: Event) -> Generator[bytes]:
    """The bytes behind an address, and at most a chunk more than `max_bytes`."""
    num_bytes = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            while num_bytes <= max_bytes and (chunk := answer.read(CHUNK_BYTES)):
                num_bytes += len(chunk)
                yield chunk
                if is_over.is_set():
                    raise _StoppedTransfer
            if not chunk and answer.length:  # `read` tells nothing if the connection ends before the last byte
                raise _FailedTransfer(f"{url} was cut after {num_bytes:,} of {num_bytes + answer.length:,} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        message = f"{url} answers {error.code} ({error.reason})"
        if error.code in PASSING_STATUS:
            raise _FailedTransfer(message) from error
        raise ShardError(f"distill.shards: {message}; {PERMANENT_FIX}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirection to no address
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        message = f"{url} could not be read ({reason or type(error).__name__})"
        if _is_permanent(reason):
            raise ShardError(f"distill.shards: {message}; {PERMANENT_FIX}") from error
        raise _FailedTransfer(message) from error


def _is_permanent(reason: object) -> bool:
    """Whether another try has the same result: an unknown host, or a certificate that is not valid."""
    is_unknown_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
    return is_unknown_host or isinstance(reason, ssl.SSLCertVerificationError)


def _with_tries(transfer: Callable[[], Result], is_over: Event) -> Result:
    """What `transfer` returns at its first try that does not fail; raises ShardError when the last one fails."""
    for _ in range(NUM_TRIES - 1):
        try:
            return transfer()
        except _FailedTransfer:
            if is_over.wait(PAUSE_S):
                raise _StoppedTransfer from None
    try:
        return transfer()
    except _FailedTransfer as error:
        raise ShardError(f"distill.shards: {error}; run the same command again, it fetches what is missing") from error
