"""`FileState`: whether a file of a run is whole, damaged, or not of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.data.codec import ImageError, open_with_pillow
from pipeline.runtime.config import ConfigError
from pipeline.runtime.recorder import read_lines

State = Literal["whole", "damaged", "foreign"]


@dataclass(frozen=True)
class FileState:
    """The state of a file; `note` says how it is damaged, or why it is not of the run, and names the file."""

    path: Path
    state: State
    note: str = ""


def state_of(
    path: Path, require_whole: Callable[[Path], object], require_own: Callable[[], object] | None = None
) -> FileState:
    """The state of a file that exists.

    `require_whole` raises an error when it is damaged; `require_own` raises ConfigError when it is of another run or
    configuration, another ValueError when that cannot be told.
    """
    try:
        require_whole(path)
    except (ValueError, OSError) as error:
        return FileState(path, "damaged", str(error))
    try:
        if require_own:
            require_own()
    except ConfigError as error:
        return FileState(path, "foreign", str(error))
    except (ValueError, OSError) as error:
        return FileState(path, "whole", f"{path} is whole, but it cannot be told whether it is of this run: {error}")
    return FileState(path, "whole")


def require_whole_lines(path: Path) -> None:
    """Raise ValueError when a line of metrics is damaged."""
    lines = read_lines(path)
    if count := lines.count(None):
        raise ValueError(
            f"{path} is damaged: {count} of {len(lines)} lines do not have their checksum; the report leaves them out, "
            "move the file away to begin a new one"
        )


def require_whole_picture(path: Path) -> None:
    """Raise ValueError when a PNG file does not have the checksums in it."""
    try:
        with open_with_pillow(path.read_bytes(), str(path)) as image:
            image.verify()
    except ImageError as error:
        reason = f"{path} is damaged ({error.reason}); remove it, a picture is no output that others need"
        raise ValueError(reason) from error
