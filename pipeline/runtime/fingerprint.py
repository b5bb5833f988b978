"""Fingerprints of identities, and the comparison of two identities."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.runtime.config import ConfigError, to_plain

PACKAGE = "dreamdistill"
# A message that lists keys stays readable up to about this many.
KEYS_SHOWN = 8
# The section of a configuration that an identity holds under another name.
SECTIONS = {"training": "teacher_training"}
# The last part of a key with a hash, and what another hash means.
HASHES = {
    "sha256": "the weights changed",
    "code_sha256": "the code of the network changed",
    "hash": "the images changed",
}
# What to do about an output of another identity.
FIX = "Set another `name`, or remove it (the command `clean` removes all outputs of the run)"


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything in `identity`."""
    text = json.dumps(to_plain(identity), allow_nan=False, default=str)  # Python's options can be anything
    as_it_is_read = json.dumps(json.loads(text), sort_keys=True)  # whose keys are text
    return hashlib.sha256(as_it_is_read.encode()).hexdigest()[:16]


def differences(existing: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """The keys in which the identity of an existing output differs from the current one, for an error message."""
    before, after = dict(flatten(to_plain(existing))), dict(flatten(to_plain(current)))
    pairs = {k: (before.get(k, "absent"), after.get(k, "absent")) for k in sorted(before.keys() | after.keys())}
    changed = [_in_words(k, old, new) for k, (old, new) in pairs.items() if old != new]
    more = [f"and {len(changed) - KEYS_SHOWN} more"] if len(changed) > KEYS_SHOWN else []
    return "; ".join(changed[:KEYS_SHOWN] + more)


def _in_words(key: str, old: Any, new: Any) -> str:
    """A difference with the key that the configuration has, and without hashes, which tell nothing."""
    parent, _, name = key.rpartition(".")
    if parent and name in HASHES and "absent" not in (old, new):
        return f"{parent}: {HASHES[name]}"
    section, dot, rest = key.partition(".")
    return f"{SECTIONS.get(section, section)}{dot}{rest}: {old} before, {new} now"


def require_same_identity(output: str, existing: Mapping[str, Any], current: Mapping[str, Any], fix: str = FIX) -> None:
    """Raise ConfigError, with the fix, when an existing output has another identity than the current one."""
    if fingerprint(existing) != fingerprint(current):
        raise ConfigError(
            f"{output} was made with another configuration ({differences(existing, current)}); nothing was changed. "
            f"{fix}"
        )


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every leaf of nested mappings and lists of mappings, as overrides name them."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from flatten(v, f"{key}.{k}" if key else str(k))
    else:
        yield key, value


def versions() -> dict[str, str]:
    """The versions of this package, the interpreter and the libraries that can change the bytes of an output."""
    names = ("torch", "torchvision", "numpy", "Pillow", "webdataset")
    libraries = {name: importlib.metadata.version(name) for name in names}
    return {PACKAGE: source_version(), "python": platform.python_version(), **libraries}


def source_version() -> str:
    """The version of this package if it is installed, and the commit if it runs from a git checkout."""
    root, parts = Path(__file__).parents[2], []
    with suppress(importlib.metadata.PackageNotFoundError):  # a checkout runs without being installed
        parts.append(importlib.metadata.version(PACKAGE))
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty=, with uncommitted changes"]
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        parts += [f"commit {described.stdout.strip()}"] if described.returncode == 0 else []
    return ", ".join(parts) or "unknown"
