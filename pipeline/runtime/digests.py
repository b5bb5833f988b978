"""The digest that a file of JSON or text carries, by which damage to it is noticed."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

DIGEST, LINE_DIGEST = "sha256", "crc32"
# How the last line of a text file holds its digest, by the ending of the file's name.
COMMENTS = {".md": "<!-- sha256 {} -->", ".html": "<!-- sha256 {} -->", ".yaml": "# sha256 {}"}


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of its other keys and values, whatever their order."""
    return {**value, DIGEST: _digest(json.loads(json.dumps(value)))}


def unseal(content: bytes) -> dict[str, Any]:
    """The JSON object in the bytes of a file, without its digest; raises ValueError, saying why, unless it is whole."""
    value = _parse_object(content)
    stated = value.pop(DIGEST, None)
    if stated is None:
        raise ValueError("it holds no digest; files of older versions have none")
    if stated != _digest(value):
        raise ValueError("its content does not have the digest in it")
    return value


def seal_line(value: Mapping[str, Any]) -> bytes:
    """A JSON object as one line with a checksum, CRC-32, for files that grow by a line."""
    line = json.dumps({**value, LINE_DIGEST: zlib.crc32(_canonical(json.loads(json.dumps(value))))})
    return f"{line}\n".encode()


def unseal_line(line: bytes) -> dict[str, Any]:
    """The object in a line of `seal_line`, without its checksum; raises ValueError unless it is whole."""
    value = _parse_object(line)
    if value.pop(LINE_DIGEST, None) != zlib.crc32(_canonical(value)):
        raise ValueError("its content does not have the checksum in it")
    return value


def seal_text(text: str, ending: str) -> str:
    """The text with a last line that holds its SHA-256, as a comment of files with this ending."""
    start = text if text.endswith("\n") else f"{text}\n"
    return f"{start}{COMMENTS[ending].format(hashlib.sha256(start.encode()).hexdigest())}\n"


def find_fault(content: bytes, ending: str) -> str | None:
    """Why the content of a file with this ending is not what `seal` or `seal_text` made; None if it is."""
    if ending == ".json":
        try:
            unseal(content)
        except ValueError as error:
            return str(error)
        return None
    end = content.rstrip(b"\n").rfind(b"\n") + 1
    comment = COMMENTS[ending].format(hashlib.sha256(content[:end]).hexdigest())
    return None if content[end:] == f"{comment}\n".encode() else "its last line is not the digest of all before it"


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
