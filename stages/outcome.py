"""How a command ends: its exit code, and the line that says why."""

import sys

from pipeline.runtime.environment import is_rank_zero, launcher_reports_errors
from pipeline.runtime.text import printable

DONE, FAILED, INTERRUPTED = 0, 2, 130
INTERRUPTED_LINE = "interrupted; run the same command again to continue"
EXIT_CODES = """\
exit codes:
  0    done, also when there was nothing left to do
  1    a fault of the program, with a trace
  2    an error: one line says what is wrong, and the fix
  130  interrupted: the same command continues"""


class UsageError(ValueError):
    """A command line that no command understands; the message names the word and the fix."""


def error_text(error: Exception) -> str:
    """The text of the error, without the number that Python puts before our own text of an OSError."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


def print_error(message: str, *, is_common: bool = True) -> None:
    """Print one line; an error that `is_common` to all ranks is printed by rank 0 alone."""
    if is_rank_zero() or not is_common:
        print(f"error: {printable(message)}", file=sys.stderr)


def print_interrupted() -> None:
    """Print how to continue; a rank leaves that to the process that launched it."""
    if not launcher_reports_errors():
        print(INTERRUPTED_LINE, file=sys.stderr)
