"""The digest that a file of JSON or text carries, by which damage to it is noticed."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

DIGEST, LINE_DIGEST = "sha256", "crc32"
# How the last line of a text file holds its digest, by the ending of the file's name.
COMMENTS = {".md": "<!-- sha256 {} -->", ".html": "<!-- sha256 {} -->", ".yaml": "# sha256 {}"}
# Far above the depth of our own files, and far below what functions that call themselves can follow.
MAX_DEPTH = 100
TOO_DEEP = "its values are nested too deeply"


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of its other keys and values, whatever their order."""
    return {**value, DIGEST: _digest(json.loads(json.dumps(value)))}


def unseal(content: bytes) -> dict[str, Any]:
    """The JSON object in the bytes of a file, without its digest; raises ValueError, saying why, unless it is whole."""
    value = parse_object(content)
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
    value = parse_object(line)
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


def parse_object(content: bytes | str) -> dict[str, Any]:
    """The JSON object in a text; raises ValueError when there is none, or when it is deeper than `MAX_DEPTH`."""
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    if _is_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, dict | list)]
    return bool(level)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
