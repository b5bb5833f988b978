"""Transfers by the drivers of fsspec: how often one is tried, and what is said when all tries fail."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

# A transfer that fails is tried so often. The first pause between two tries is this long, each further one longer.
NUM_TRIES, PAUSE_S, PAUSE_FACTOR = 3, 1.0, 4.0
FIX = "correct the address, the credentials or the network; the same command continues"

Value = TypeVar("Value")


class StoreError(ValueError):
    """A store that fails or refuses; the message names the address, the reason and the fix."""


class FailedTransfer(Exception):
    """What a driver raised is the cause."""


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn whatever a driver raises into a FailedTransfer: each driver has errors of its own."""
    try:
        yield
    except (StoreError, FailedTransfer):
        raise
    except Exception as error:
        raise FailedTransfer from error


def with_tries(what: str, transfer: Callable[[], Value], before_next_try: Callable[[], None]) -> Value:
    """What the transfer returns at its first try without a FailedTransfer.

    Raises StoreError, which says `what` was to be done, after the last try or if others would have the same result.
    """
    for i in range(NUM_TRIES):
        try:
            return transfer()
        except FailedTransfer as failed:
            error = failed.__cause__
            if i == NUM_TRIES - 1 or isinstance(error, FileNotFoundError | PermissionError):
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise StoreError(f"object_store: cannot {what} ({reason}); {FIX}") from error
        time.sleep(PAUSE_S * PAUSE_FACTOR**i)
        before_next_try()
    raise AssertionError("the last try returns or raises")
