"""`Finding`: the result of one check, in one line."""

from dataclasses import dataclass
from typing import Literal

from pipeline.runtime.text import printable

Status = Literal["ok", "warning", "problem"]
# ANSI colors of the terminal: green, yellow, red.
COLORS: dict[Status, int] = {"ok": 32, "warning": 33, "problem": 31}
# Widths of the columns of a line.
STATUS_WIDTH, SUBJECT_WIDTH = 9, 15


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found about a `subject`; the `text` of a warning and of a problem ends with the fix.

    With a warning the run works, but worse than it could, or something could not be checked. With a problem it fails or
    its result is wrong.
    """

    status: Status
    subject: str
    text: str

    def line(self, *, is_colored: bool = False) -> str:
        """The finding in one line; the color repeats what the word says."""
        word = f"{self.status:<{STATUS_WIDTH}}"
        if is_colored:
            word = f"\033[{COLORS[self.status]}m{word}\033[0m"
        return f"{word}{self.subject:<{SUBJECT_WIDTH}}{printable(' '.join(self.text.split()))}"


def reason(error: Exception, fix: str) -> str:
    """The text of an error; with its type and `fix` if it is none of ours, which name the fix."""
    text = str(error)
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}; {fix}"


def ok(subject: str, text: str) -> Finding:
    """A check that passed."""
    return Finding(status="ok", subject=subject, text=text)


def warning(subject: str, text: str) -> Finding:
    """Something that can be better, or that could not be checked."""
    return Finding(status="warning", subject=subject, text=text)


def problem(subject: str, text: str) -> Finding:
    """Something that stops the run or spoils its result."""
    return Finding(status="problem", subject=subject, text=text)
