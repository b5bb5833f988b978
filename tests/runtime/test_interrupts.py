"""Interrupts wait for the end of a block; a second one does not."""

import signal
import threading
from contextlib import nullcontext

import pytest

from pipeline.runtime.interrupts import INTERRUPTS, Terminated, delayed_interrupts, raise_terminated

pytestmark = pytest.mark.usefixtures("_interruptible")


@pytest.mark.parametrize("number", INTERRUPTS)
def test_interrupt_is_raised_at_the_end_of_the_block(number):
    before = [signal.getsignal(n) for n in INTERRUPTS]
    steps = []
    with pytest.raises(KeyboardInterrupt), delayed_interrupts() as interrupt:
        steps.append(interrupt.has_arrived)
        signal.raise_signal(number)
        steps.append(interrupt.has_arrived)
    assert steps == [False, True]
    assert [signal.getsignal(n) for n in INTERRUPTS] == before


def test_second_interrupt_acts_at_once():
    with pytest.raises(KeyboardInterrupt), delayed_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt was delayed")


def test_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with delayed_interrupts() as interrupt:
        signal.raise_signal(signal.SIGINT)
    assert not interrupt.has_arrived


def test_error_of_the_block_passes():
    with pytest.raises(OSError, match="full"), delayed_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise OSError("full")


def test_block_of_another_thread_runs_and_delays_nothing():
    handlers = []

    def run():
        with delayed_interrupts() as interrupt:
            handlers.append((signal.getsignal(signal.SIGINT), interrupt.has_arrived))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [(signal.default_int_handler, False)]


def test_second_sigterm_does_not_act_at_once():
    steps = []
    with pytest.raises(Terminated), delayed_interrupts():
        for step in range(3):
            signal.raise_signal(signal.SIGTERM)
            steps.append(step)
    assert steps == [0, 1, 2]


def test_interrupt_of_another_rank_ends_the_block():
    with pytest.raises(Terminated), delayed_interrupts() as interrupt:
        interrupt.stop()


@pytest.mark.parametrize(("is_interrupted", "error"), [(True, Terminated), (False, ConnectionError)])
def test_lost_rank_is_no_error_after_an_interrupt(is_interrupted, error):
    with pytest.raises(error), delayed_interrupts():
        if is_interrupted:
            signal.raise_signal(signal.SIGTERM)
        raise ConnectionError("another rank is lost")


@pytest.mark.parametrize("block", [nullcontext, delayed_interrupts])
def test_sigterm_raises_once(block):
    former = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with pytest.raises(Terminated), block():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
