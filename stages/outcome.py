"""How a command ends: its exit code, and the line that says why."""

import os
import sys
from typing import NoReturn

from pipeline.runtime.environment import is_rank_zero, launcher_reports_errors, ranks_of_torchrun
from pipeline.runtime.interrupts import Terminated
from pipeline.runtime.text import printable

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 2, 130, 143
INTERRUPT_LINES = {
    INTERRUPTED: "interrupted; run the same command again to continue",
    TERMINATED: "terminated; run the same command again to continue",
}
EXIT_CODES = """\
exit codes:
  0    done, also when there was nothing left to do
  1    a fault of the program, with a trace
  2    an error: one line says what is wrong, and the fix
  130  interrupted (Ctrl-C): the same command continues
  143  terminated (SIGTERM): the same command continues"""


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


def report_interrupt(interrupt: BaseException) -> int:
    """Print how to continue, and return the exit code of an interrupt."""
    code = TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    if _reports_interrupts():
        print(INTERRUPT_LINES[code], file=sys.stderr)
    return code


def exit_terminated() -> NoReturn:
    """End this process, whatever its main thread does, without the locks of Python's files."""
    if _reports_interrupts():
        os.write(2, f"{INTERRUPT_LINES[TERMINATED]}\n".encode())
    os._exit(TERMINATED)


def _reports_interrupts() -> bool:
    """Whether this is the first rank of its machine, and the process that launched it does not report for it."""
    _, _, local_rank, _ = ranks_of_torchrun()
    return local_rank == 0 and not launcher_reports_errors()
