"""Signals that come while something is being made ready."""

import os
import signal
import threading
import weakref

import pytest

from streams.runtime.process import Interrupted, Interrupts, by_thread

pytestmark = pytest.mark.timeout(60)


class Thing:
    pass


def test_a_signal_breaks_off_what_is_being_made_ready_and_the_next_one_only_counts() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.seen == 2
        assert interrupts.stop.wait(10)


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


def test_a_signal_comes_through_while_the_main_thread_has_the_lock_that_its_action_takes() -> None:
    lock, done = threading.Lock(), threading.Event()

    def act() -> None:
        with lock:
            done.set()

    before = signal.signal(signal.SIGTERM, by_thread(act))
    try:
        with lock:
            signal.raise_signal(signal.SIGTERM)
        assert done.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)
