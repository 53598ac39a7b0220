"""A device is silent only while the worker would have heard it."""

from hypothesis import given
from hypothesis import strategies as st

from streams.worker.windows.tumbling import STEP_S, ListeningClock


def listening(*answers: tuple[float, int, int]) -> ListeningClock:
    clock = ListeningClock()
    for answer in answers:
        clock.answered(*answer)
    return clock


def test_it_follows_the_brokers_answers() -> None:
    assert listening((10.0, 5, 5), (11.5, 5, 5), (13.0, 5, 5)).seconds == 3.0
    assert listening((10.0, 5, 5), (10.0, 5, 5)).seconds == 0.0


def test_it_stands_still_while_messages_are_not_taken_in() -> None:
    clock = listening((10.0, 5, 5), (11.0, 9, 5), (12.0, 9, 6), (20.0, 9, 8))
    assert clock.seconds == 0.0
    clock.answered(21.0, 9, 9)  # all that was there at 11
    assert clock.seconds == 1.0


def test_an_outage_counts_as_a_step() -> None:
    assert listening((10.0, 5, 5), (500.0, 5, 5)).seconds == STEP_S


def test_what_an_answer_after_a_stall_brings_is_heard_with_it() -> None:
    """A worker that stood still for a minute takes in what has come: nobody was silent."""
    clock = listening((10.0, 5, 5))
    heard_s = clock.heard(70.1)
    clock.answered(70.0, 9, 9)
    assert clock.seconds <= heard_s


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30
    )
)
def test_it_never_goes_back_nor_faster_than_the_callers_clock(
    steps: list[tuple[float, int, int]],
) -> None:
    clock, at_s, end, taken = ListeningClock(), 0.0, 0, 0
    for passed_s, more, took in steps:
        at_s, end = at_s + passed_s, end + more
        taken = min(end, taken + took)
        before, heard_s = clock.seconds, clock.heard(at_s)
        clock.answered(at_s, end, taken)
        assert before <= clock.seconds <= heard_s <= at_s + 1e-9
