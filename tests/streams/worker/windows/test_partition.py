import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import ProcessFailed
from streams.contract.events.messages import Drop
from streams.worker.commit.work import CommitWork
from streams.worker.windows.partition import PartitionState, StorePosition, due_windows
from streams.worker.windows.tumbling import SentAgain, Window
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import SECOND, events
from tests.rig.unwrap import unwrap

Span = tuple[int, int]
spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda s: (s[0], s[0] + s[1] - 1))


def message(state: PartitionState, offset: int, again: bytes = b""):  # type: ignore[no-untyped-def]
    found = unwrap(state.track(offset, offset))
    found.again = SentAgain(again, bool(again))
    return found


def seqs_of(windows) -> list[int]:  # type: ignore[no-untyped-def]
    pieces = [piece for window in windows for piece in window.pieces]
    return [s for p in pieces for s in range(p.events.first, p.events.last + 1)]


def close(state: PartitionState, now_s: float, limit: int) -> list[Window]:
    """What one flush takes."""
    state.queue_due(now_s)
    return state.take_due(limit)


@given(st.lists(spans, max_size=8), st.lists(spans, min_size=1, max_size=8))
def test_a_drop_leaves_out_what_is_scored_buffered_or_dropped(
    scored: list[Span], drops: list[Span]
) -> None:
    state = PartitionState(0, StorePosition())
    offset = 0
    have: set[int] = set()
    for first, last in scored:
        state.add_events(
            task, message(state, offset), events("d0", first, [1.0] * (last - first + 1)), 0
        )
        have |= set(range(first, last + 1))
        offset += 1
    for first, last in drops:
        state.add_drop(message(state, offset), Drop("d0", "e1", first, last, "full"))
        offset += 1
    drops_taken, _, _ = state.take_others()
    taken = [s for d in drops_taken for s in range(d.drop.first, d.drop.last + 1)]
    wanted = {s for first, last in drops for s in range(first, last + 1)} - have
    assert len(taken) == len(set(taken))
    assert set(taken) == wanted


def test_a_drop_is_acknowledged_only_when_it_is_stored() -> None:
    state = PartitionState(0, StorePosition())
    state.add_drop(message(state, 0), Drop("d0", "e1", 0, 2**62, "full"))
    work = CommitWork()
    work.take(state)
    assert state.acknowledgeable() == []
    work.seal({0: state})
    assert [m.offset for m in state.acknowledgeable()] == [0]


def test_an_offset_that_comes_again_is_not_tracked_twice() -> None:
    state = PartitionState(0, StorePosition())
    assert state.track(5, None) is not None
    assert state.track(5, None) is None
    assert state.track(9, None) is not None
    assert state.track(7, None) is None


def test_an_offset_from_before_the_first_ends_the_process() -> None:
    state = PartitionState(3, StorePosition())
    state.track(5, None)
    with pytest.raises(ProcessFailed, match="partition 3: message 4 came after 5"):
        state.track(4, None)


def test_a_flush_takes_so_many_rows_and_the_rest_in_order() -> None:
    state = PartitionState(0, StorePosition())
    for n in range(4):
        state.add_events(task, message(state, n), events(f"d{n}", 0, [1.0, 2.0, 3.0]), 0.0)
    assert [w.device for w in close(state, 1e9, 5)] == ["d0", "d1"]
    assert state.behind
    state.add_events(task, message(state, 4), events("d3", 3, [4.0]), 0.0)  # d3's window
    state.add_events(task, message(state, 5), events("d0", 3, [4.0]), 0.0)
    taken = close(state, 1e9, 10**9)
    assert [(w.device, w.rows) for w in taken] == [("d2", 3), ("d3", 3), ("d0", 1)]
    assert [(w.device, w.rows) for w in close(state, 1e9, 10**9)] == [("d3", 1)]
    assert not state.behind


def test_what_is_in_flight_is_weighed_until_it_is_acknowledged() -> None:
    state = PartitionState(0, StorePosition())
    first, second = (unwrap(state.track(at, None, size)) for at, size in ((4, 100), (6, 50)))
    first.unsealed = 1
    assert (state.bytes, state.in_flight, state.done) == (150, 2, 4)
    assert second.unsealed == 0
    assert state.acknowledgeable() == []
    assert state.bytes == 150
    first.unsealed = 0
    state.acknowledgeable()
    assert (state.bytes, state.in_flight, state.done) == (0, 0, 7)


def test_an_event_from_the_future_is_taken_and_belongs_to_no_window() -> None:
    state = PartitionState(0, StorePosition())
    first = message(state, 0)
    state.add_events(task, first, events("d0", 0, [1.0, 500.0, 2.0]), 0.0, believed_us=100 * SECOND)
    _, _, (piece,) = state.take_others()
    assert (piece.events.first, piece.rows, first.unsealed) == (1, 1, 3)
    assert seqs_of(close(state, 0.0, 10**9)) == []  # the watermark is that of what is believed
    assert [(d.first, d.last, d.reason) for d in state.refuse(piece, "why")] == [(1, 1, "why")]
    state.seal((piece,))
    assert seqs_of(close(state, 1e9, 10**9)) == [0, 2]
    state.add_events(task, message(state, 1), events("d0", 1, [500.0]), 0.0)
    assert seqs_of(close(state, 1e9, 10**9)) == []  # it is not tried again by itself


def test_other_events_with_numbers_that_are_counted_are_parked_and_repeats_are_not() -> None:
    state = PartitionState(0, StorePosition())
    state.add_events(task, message(state, 0), events("d0", 0, [1.0, 2.0, 3.0, 2.5]), 0.0)
    state.add_events(task, message(state, 1), events("d0", 0, [1.0, 2.0, 3.0, 2.5]), 0.0)
    state.add_events(task, message(state, 2), events("d0", 2, [3.0, 2.5, 4.0]), 0.0)
    assert state.take_others() == ([], [], [])
    anew = message(state, 3)
    state.add_events(task, anew, events("d0", 0, [6.0, 7.0, 3.5, 7.0, 4.0, 8.0]), 0.0)
    _, _, pieces = state.take_others()
    assert [(p.events.first, p.rows) for p in pieces] == [(0, 2), (3, 1)]
    assert anew.unsealed == 4
    assert [state.refuse(piece, "seq-reused") for piece in pieces] == [[], []]
    state.seal(pieces)
    assert sorted(seqs_of(close(state, 1e9, 10**9))) == [0, 1, 2, 3, 4, 5]


def test_what_was_refused_is_taken_when_it_is_sent_again_and_declared_once() -> None:
    state = PartitionState(0, StorePosition())
    state.add_events(task, message(state, 0), events("d0", 0, [1.0] * 6), 0.0)
    (window,) = close(state, 1e9, 10**9)
    (piece,) = window.pieces
    state.add_drop(message(state, 1), Drop("d0", "e1", 8, 9, "full"))
    assert [(d.first, d.last) for d in state.refuse(piece, "why")] == [(0, 5)]
    state.add_events(task, message(state, 2, b"7"), events("d0", 2, [1.0] * 2), 0.0)
    (window,) = close(state, 1e9, 10**9)
    assert seqs_of([window]) == [2, 3]
    assert state.refuse(window.pieces[0], "why") == []
    state.add_events(task, message(state, 3, b"7"), events("d0", 2, [1.0] * 2), 0.0)
    assert seqs_of(close(state, 1e9, 10**9)) == [2, 3]
    state.add_events(task, message(state, 4, b"7"), events("d0", 2, [1.0] * 2), 0.0)
    assert seqs_of(close(state, 1e9, 10**9)) == []  # not refused a third time: it is in a window


def test_a_flush_takes_what_one_partition_has_not_from_another() -> None:
    """Three partitions with 12, 1 and 5 windows of 2 rows, and room for 12 windows."""
    states, taken = {p: PartitionState(p, StorePosition()) for p in range(3)}, list[list[int]]()
    for partition, count in ((0, 12), (1, 1), (2, 5)):
        for n in range(count):
            sent = message(states[partition], n)
            states[partition].add_events(task, sent, events(f"d{n}", 0, [1.0, 2.0]), 0.0)
    while windows := due_windows(states, dict.fromkeys(states, 1e9), 24):
        taken.append([sum(w.partition == p for w in windows) for p in states])
    assert taken == [[6, 1, 5], [6, 0, 0]]
