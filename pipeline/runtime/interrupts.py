"""Interrupts that wait until the work at hand can stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Ctrl-C, and what `kill` and schedulers send.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupt:
    """Whether an interrupt has arrived; made by `delayed_interrupts`."""

    has_arrived: bool = False


@contextmanager
def delayed_interrupts(enabled: bool = True) -> Iterator[Interrupt]:
    """Only note an interrupt within the block, and raise KeyboardInterrupt at its end; a second one acts at once.

    The block asks `Interrupt.has_arrived` where it can stop. Signals that the process ignores, as shells ask of what
    they run in the background, stay ignored. Outside of the main thread, which alone gets signals, nothing is delayed.
    """
    interrupt = Interrupt()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.has_arrived = True
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
    handlers = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        restore()
    if interrupt.has_arrived:
        raise KeyboardInterrupt
