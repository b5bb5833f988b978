"""The parsers of files that can come from anywhere, as functions of random bytes; and real files to begin with."""

import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.operations import EXECUTIONS, changed_paths
from pipeline.data.parts import ShardError, find_fault, find_whole, part_fingerprint, read_members
from pipeline.data.samples import read_metadata, read_samples
from pipeline.data.shards import MANIFEST, read_manifest
from pipeline.distillation.state import digest_line, read_state
from pipeline.models.checkpoint import load_classifier, read_description
from pipeline.models.digest import with_digest
from pipeline.models.weights import read_weights
from pipeline.run import load_run
from pipeline.runtime.digests import seal

# Where a tar header has its checksum, and the mark by which a block is known as one.
CHECKSUM, MARK = slice(148, 156), slice(257, 262)
# Files larger than that only make fuzzing slow.
MAX_SEED_BYTES = 1 << 15
# Values that take the place of others in a manifest, and how often an inner one is not looked for.
DELETED = object()
OTHER_VALUES = (None, True, 0, -1, 1, 1e300, 10**30, 0.5, "", "../x", "/x", "\0", [], [None], [[]], {}, {"": 0})
STOP_SHARE = 0.3


class Harm(Exception):
    """A parser wrote a file or started a program."""


def require_clean_end(name: str, data: bytes, folder: Path) -> None:
    """Let a parser read a file of random bytes; ValueError and OSError that name it pass, all else does not."""
    with suppress(ValueError, OSError):
        PARSERS[name](data, folder)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Let nothing be written or started in the block, and require that an error names the file."""
    _Guard.is_on = True
    try:
        yield
    except (ValueError, OSError) as error:
        if str(path) not in str(error):
            raise AssertionError(f"it does not name the file: {error!r}") from error
        raise
    finally:
        _Guard.is_on = False


class _Guard:
    """The audit hook that `_reading` turns on; hooks cannot be removed."""

    is_on = False
    is_installed = False

    @classmethod
    def audit(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.is_on and (event in EXECUTIONS or any(path != os.devnull for path in changed_paths(event, arguments))):
            cls.is_on = False
            raise Harm(f"{event} {arguments!r}"[:200])


def install_guard() -> None:
    """Let parsers of this process fail when they write a file or start a program."""
    if not _Guard.is_installed:
        sys.addaudithook(_Guard.audit)
        _Guard.is_installed = True


def _config(data: bytes, folder: Path) -> None:
    """A config file, and after a byte of zero an override."""
    path = folder / "fuzzed.yaml"
    text, _, override = data.partition(b"\0")
    path.write_bytes(text)
    overrides = [override.decode(errors="replace")] if override else []
    load_run(path, overrides)  # errors of values name the key in place of the file


def _manifest(data: bytes, folder: Path) -> None:
    """A manifest; one that is JSON also with a digest that fits."""
    path = folder / MANIFEST
    with suppress(ValueError, RecursionError):
        value = json.loads(data)
        if isinstance(value, dict):
            data = json.dumps(seal(value)).encode()
    path.write_bytes(data)
    with _reading(path):
        read_manifest(folder)


def _tar(data: bytes, folder: Path) -> None:
    """A part or shard, whose headers have the checksums that fit."""
    path, content = folder / "fuzzed.tar", bytearray(data)
    for start in range(0, len(content) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        header = content[start : start + tarfile.BLOCKSIZE]
        if header[MARK] == b"ustar":
            header[CHECKSUM] = b" " * 8
            header[CHECKSUM] = b"%06o\0 " % sum(header)
            content[start : start + tarfile.BLOCKSIZE] = header
    path.write_bytes(content)
    with _reading(path):
        find_fault(path, ["0003/000001"])
        find_whole(path, {""})
        part_fingerprint(path)
        for read in (read_members, lambda p: list(read_metadata(p, 3)), lambda p: read_samples(p, 3, "png", 3)):
            with suppress(ShardError):
                read(path)
        read_members(path)


def _weights(data: bytes, folder: Path) -> None:
    """Weights, or a network or state of a run, with a digest that fits; the first byte tells which."""
    kind, content = data[:1], data[1:]
    path = folder / {b"s": "fuzzed.state", b"p": "fuzzed.pt"}.get(kind, "fuzzed.safetensors")
    if kind == b"s":
        content = content.partition(b"\n")[2]
        content = digest_line(content) + content
    elif kind == b"n":
        with suppress(ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            content = with_digest(content)
    path.write_bytes(content)
    read = {b"s": read_state, b"n": load_classifier}.get(kind, read_weights)
    with _reading(path):
        read(path)
        if kind not in (b"s", b"p"):
            read_description(path)


# Each writes random bytes to a file in a folder, and reads it.
PARSERS: dict[str, Callable[[bytes, Path], None]] = {
    "config": _config,
    "manifest": _manifest,
    "tar": _tar,
    "weights": _weights,
}


def with_other_value(data: bytes, draw: random.Random) -> bytes | None:
    """A JSON object with one of its values, at any depth, replaced or removed; None for other bytes."""
    try:
        node = value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if not node[key] or not isinstance(node[key], dict | list) or draw.random() < STOP_SHARE:
            other = draw.choice((*OTHER_VALUES, DELETED))
            if other is DELETED:
                del node[key]
            else:
                node[key] = other
            break
        node = node[key]
    return json.dumps(value).encode()


def write_seeds(run: Path, folder: Path) -> None:
    """Write real files of a run in folders by parser, from which random ones are made."""
    seeds: dict[str, list[bytes]] = {name: [] for name in PARSERS}
    seeds["config"] = [path.read_bytes() for path in run.rglob("*.yaml")]
    seeds["config"].append(seeds["config"][0] + b"\0synthesis.inversion.phases.0.steps=5")
    seeds["manifest"] = [path.read_bytes() for path in run.rglob(MANIFEST)]
    seeds["tar"] = [path.read_bytes() for path in sorted(run.rglob("*.tar"))[:3]]
    for path in sorted(run.rglob("*.safetensors")):
        seeds["weights"] += [b"w" + path.read_bytes(), b"n" + path.read_bytes()]
        buffer = io.BytesIO()
        torch.save(read_weights(path), buffer)
        seeds["weights"].append(b"p" + buffer.getvalue())
    seeds["weights"] += [b"s" + path.read_bytes() for path in run.rglob("*.state")]
    for name, contents in seeds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(contents):
            if len(content) <= MAX_SEED_BYTES:
                (folder / name / str(i)).write_bytes(content)
