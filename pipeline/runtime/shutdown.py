"""The end of a process in time: after SIGTERM also in a long computation, and after the end of its parent."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from pipeline.runtime.interrupts import Terminated, raise_terminated

# After SIGTERM. Schedulers and torchrun send SIGKILL after 30 s, some after 10 s.
EXIT_WITHIN_S = 8.0
# Between two looks at the parent.
LOOK_EVERY_S = 1.0
# Until a signal arrives again that Python dropped; by then it has left the function that cannot raise.
AGAIN_AFTER_S = 0.05
_saving = threading.Lock()
_is_dropped = threading.Event()


def handle_termination(exit_now: Callable[[], NoReturn], *, ends_with_parent: bool) -> None:
    """Let SIGTERM raise `Terminated` in the main thread, and call `exit_now` in another if that is not enough.

    A signal is handled between two operations of Python, and a compiled step is one. So a thread waits for the signal,
    too, and calls `exit_now` `EXIT_WITHIN_S` later. If the process `ends_with_parent`, its parent's end is a SIGTERM.

    What a signal raises in a destructor or a callback, such as those of the compiler, Python prints and drops. Then the
    signal arrives again, and nothing is printed.
    """
    signal.signal(signal.SIGTERM, raise_terminated)
    sys.unraisablehook = partial(_note_dropped, sys.unraisablehook)
    arrivals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    parent = os.getppid() if ends_with_parent else None
    threading.Thread(target=partial(_watch, arrivals, parent, exit_now), daemon=True).start()


def _watch(arrivals: int, parent: int | None, exit_now: Callable[[], NoReturn]) -> None:
    """Wait for SIGTERM in the pipe to which Python writes the numbers of the signals that arrive, or for an orphan."""
    while True:
        is_readable, _, _ = select.select([arrivals], [], [], LOOK_EVERY_S)
        if is_readable and signal.SIGTERM in os.read(arrivals, 64):
            break
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            break
    exits_at = time.monotonic() + EXIT_WITHIN_S
    while (remaining_s := exits_at - time.monotonic()) > 0:
        if _is_dropped.wait(remaining_s):
            _is_dropped.clear()
            time.sleep(AGAIN_AFTER_S)
            os.kill(os.getpid(), signal.SIGTERM)
    with _saving:
        exit_now()


def _note_dropped(show: Callable[[Any], object], dropped: Any) -> None:
    """What `sys.unraisablehook` does with an error that cannot be raised: `show` it, unless it is `Terminated`."""
    if isinstance(dropped.exc_value, Terminated):
        signal.signal(signal.SIGTERM, raise_terminated)
        _is_dropped.set()
    else:
        show(dropped)


@contextmanager
def finished_before_exit() -> Iterator[None]:
    """Let a block that has begun, which writes what cannot be made again, end before `exit_now` is called."""
    with _saving:
        yield
