"""Sets of images at an http or https address: each shard is fetched once, checked, and then read like any other.

The set needs its size on the disk, and training starts when all of it is there. In return an epoch holds every image
once, in a random order over all shards, and needs no network.
"""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.shards import FORMAT, MANIFEST, ShardError, is_packed
from pipeline.runtime.files import atomic_file, exclusive_lock, sha256_of
from pipeline.runtime.threads import background_threads

SCHEMES = ("http://", "https://")
# A server that sends nothing for so long is lost.
TIMEOUT_S = 30.0
# A transfer that fails is tried so often, with a pause between two tries.
NUM_TRIES, PAUSE_S = 3, 2.0
# Shards that are fetched at the same time.
NUM_CONNECTIONS = 8
CHUNK_BYTES = 1 << 20
# Of a manifest, far above that of a million images.
MAX_MANIFEST_BYTES = 1 << 30
# A name must not lead out of the folder of the set.
SHARD_NAME = re.compile(r"train/[\w-]+\.tar")
SHARD_KEYS = {"file", "class", "count", "bytes", "sha256", "keys", "offsets", "sizes"}
# Answers of a server that can be another one in a moment: too many requests, and its own errors.
PASSING_STATUS = (429, *range(500, 600))

Result = TypeVar("Result")


class _FailedTransfer(Exception):
    """A transfer that can succeed at another try; no OSError, since the disk is not to blame."""


def is_remote(name: str) -> bool:
    """Whether `name` is an address and not a folder."""
    return name.startswith(SCHEMES)


def local_folder(url: str, cache: Path) -> Path:
    """The folder of a fetched set: readable, and another one for each address."""
    parts = urllib.parse.urlsplit(url.rstrip("/"))
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.hostname}{parts.path}")
    return cache / f"{readable}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:8]}"


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
    content = _with_tries(lambda: b"".join(_read(f"{url}/{MANIFEST}", MAX_MANIFEST_BYTES)))
    missing = [entry for entry in _entries(content, f"{url}/{MANIFEST}") if not _is_fetched(folder, entry)]
    with background_threads(NUM_CONNECTIONS) as threads:
        futures = [threads.submit(_with_tries, partial(_fetch_shard, url, folder, entry)) for entry in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # the first error ends the others
            raise
    with atomic_file(folder / MANIFEST) as file:
        file.write(content)
    num_bytes: int = sum(entry["bytes"] for entry in missing)
    return num_bytes + len(content)


def _entries(content: bytes, url: str) -> list[dict[str, Any]]:
    """The shards of a manifest; raises ShardError when it is none of a set of this format."""
    try:
        manifest = json.loads(content)
        entries: list[dict[str, Any]] = manifest["shards"]
        is_valid = manifest["format"] == FORMAT and all(
            entry.keys() >= SHARD_KEYS and SHARD_NAME.fullmatch(entry["file"]) for entry in entries
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        is_valid = False
    if not is_valid:
        raise ShardError(f"distill.shards: {url} is no manifest of format {FORMAT} of a set; correct the address")
    return entries


def _is_fetched(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["file"]
    return path.is_file() and path.stat().st_size == entry["bytes"] and bool(sha256_of(path) == entry["sha256"])


def _fetch_shard(url: str, folder: Path, entry: Mapping[str, Any]) -> None:
    address, digest, num_bytes = f"{url}/{entry['file']}", hashlib.sha256(), 0
    with atomic_file(folder / entry["file"]) as file, closing(_read(address, entry["bytes"])) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            num_bytes += len(chunk)
            file.write(chunk)
        if num_bytes != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
            what = f"{num_bytes} of {entry['bytes']} bytes" if num_bytes != entry["bytes"] else "another SHA-256"
            raise _FailedTransfer(f"{address} differs from the manifest ({what}): it was cut, altered or replaced")


def _read(url: str, max_bytes: int) -> Generator[bytes]:
    """The bytes behind an address, and at most a chunk more than `max_bytes`."""
    num_bytes = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            while num_bytes <= max_bytes and (chunk := answer.read(CHUNK_BYTES)):
                num_bytes += len(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        message = f"{url} answers {error.code} ({error.reason})"
        if error.code in PASSING_STATUS:
            raise _FailedTransfer(message) from error
        raise ShardError(f"distill.shards: {message}; correct the address, or fetch the set yourself") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address without a host
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _FailedTransfer(f"{url} could not be read ({reason or type(error).__name__})") from error


def _with_tries(transfer: Callable[[], Result]) -> Result:
    """What `transfer` returns at its first try that does not fail; raises ShardError when the last one fails."""
    for _ in range(NUM_TRIES - 1):
        try:
            return transfer()
        except _FailedTransfer:
            time.sleep(PAUSE_S)
    try:
        return transfer()
    except _FailedTransfer as error:
        raise ShardError(f"distill.shards: {error}; run the same command again, it fetches what is missing") from error
