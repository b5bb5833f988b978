"""Interrupts: Ctrl-C, and SIGTERM, which `kill` and schedulers send; some work delays them until it can stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived; raised where Ctrl-C raises KeyboardInterrupt."""


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM. It raises once: a scheduler and torchrun may both send the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@dataclass
class Interrupt:
    """The first interrupt that has arrived here, or None; made by `delayed_interrupts`."""

    number: int | None = None

    @property
    def has_arrived(self) -> bool:
        """Whether an interrupt has arrived."""
        return self.number is not None

    def stop(self) -> None:
        """Let the block end with an interrupt that another rank has got, as if it had arrived here."""
        self.number = self.number or signal.SIGTERM


@contextmanager
def delayed_interrupts() -> Iterator[Interrupt]:
    """Only note an interrupt within the block, and raise KeyboardInterrupt or Terminated at its end.

    The block asks `Interrupt.has_arrived` where it can stop. A second Ctrl-C acts at once, a second SIGTERM not at all.
    If the block loses another rank after an interrupt, which all ranks get, that is no error. Signals that the process
    ignores, as shells ask of what they run in the background, stay ignored. Outside of the main thread, which alone
    gets signals, nothing is delayed.
    """
    interrupt = Interrupt()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
        handlers = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.number = interrupt.number or number
        if signal.SIGINT in handlers:
            signal.signal(signal.SIGINT, handlers[signal.SIGINT])

    for number in handlers:
        signal.signal(number, note)
    try:
        yield interrupt
    except ConnectionError:
        if not interrupt.has_arrived:
            raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if interrupt.number == signal.SIGTERM and handlers.get(signal.SIGTERM) is raise_terminated:
        raise_terminated(signal.SIGTERM, None)  # a second one does not act while the process ends either
    if interrupt.has_arrived:
        raise Terminated if interrupt.number == signal.SIGTERM else KeyboardInterrupt
