"""Identities of outputs: their fingerprint, and how two of them differ."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.runtime.config import ConfigError, to_plain

# A message that lists keys stays readable up to about this many.
KEYS_SHOWN = 8


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything in `identity`."""
    text = json.dumps(to_plain(identity), sort_keys=True, allow_nan=False, default=str)  # YAML can hold dates
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The keys in which two identities differ, as `key: there -> here`, for an error message."""
    before, after = dict(_flatten(to_plain(there))), dict(_flatten(to_plain(here)))
    pairs = {k: (before.get(k, "absent"), after.get(k, "absent")) for k in sorted(before.keys() | after.keys())}
    changed = [f"{k}: {old} there, {new} here" for k, (old, new) in pairs.items() if old != new]
    more = [f"and {len(changed) - KEYS_SHOWN} more"] if len(changed) > KEYS_SHOWN else []
    return "; ".join(changed[:KEYS_SHOWN] + more)


def refuse_other(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ConfigError when an existing output was made under another identity."""
    if fingerprint(there) != fingerprint(here):
        raise ConfigError(
            f"{what} was made with another configuration ({differences(there, here)}); nothing was changed. Set "
            "another `name`, or remove it (`make clean` removes all of the run)"
        )


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from _flatten(v, f"{key}.{k}" if key else str(k))
    else:
        yield key, value


def versions() -> dict[str, str]:
    """What computed an output: interpreter and libraries whose versions can change its bytes."""
    names = ("torch", "torchvision", "numpy", "Pillow", "webdataset")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
