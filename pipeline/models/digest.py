"""The digest in the metadata of a safetensors file that a run wrote, by which damage to the file is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.runtime.files import cached_while_unchanged

METADATA, DIGEST = "__metadata__", "sha256"
# A safetensors file starts with the size of its header, which ends at a multiple of it.
LENGTH_BYTES = 8


def with_digest(content: bytes) -> bytes:
    """The bytes of a safetensors file, whose metadata then hold the SHA-256 of its header and its tensors."""
    header, data = _header(content), content[_data_start(content) :]
    header[METADATA] = {**header.get(METADATA, {}), DIGEST: _digest(header, data)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data


@cached_while_unchanged
def is_intact(path: Path) -> bool:
    """Whether the content of a safetensors file has the digest of its metadata; false if there is none."""
    content = path.read_bytes()
    try:
        header = _header(content)
        stated = header[METADATA].pop(DIGEST)
    except (ValueError, KeyError, TypeError, AttributeError):  # no header, or no digest in it
        return False
    return bool(stated == _digest(header, content[_data_start(content) :]))


def _data_start(content: bytes) -> int:
    return LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")


def _header(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[LENGTH_BYTES : _data_start(content)])
    return header


def _digest(header: dict[str, Any], data: bytes) -> str:
    """The hash of a header without its digest, whatever the order of its keys, and of the tensors."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
