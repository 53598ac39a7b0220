"""Signals that come while something is being made ready."""

import os
import signal
import weakref

import pytest

from streams.runtime.interrupts import Interrupted, Interrupts


class Thing:
    pass


def test_a_signal_breaks_off_what_is_being_made_ready_and_the_next_one_only_counts() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.seen == 2
        assert interrupts.stop.is_set()


def test_a_signal_that_python_swallowed_is_heard_at_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swallowed: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: swallowed.append(found.exc_type))
    with Interrupts() as interrupts:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
        assert reference() is None
        assert swallowed == [Interrupted]
        with pytest.raises(Interrupted):
            interrupts.check()


def test_nothing_is_raised_once_patient() -> None:
    with Interrupts() as interrupts:
        interrupts.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
        assert interrupts.seen == 1


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
