from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.events.labels import label_rows
from streams.contract.task import Task
from streams.worker.windows.tumbling import DeviceWindows, Message, split
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import SECOND, events, labels

# tiny: windows of 5 s, 1 s of lateness, closed after 2 s of silence


def filled(times_s: list[float], now_s: float = 0.0, of: Task = task) -> DeviceWindows:
    windows = DeviceWindows(of, -1, now_s)
    for piece in split(task, Message(0, None), events("d0", 0, times_s)):
        windows.add(piece, now_s)
    return windows


def test_a_window_closes_when_event_time_has_passed_its_end_and_the_lateness() -> None:
    assert filled([0, 4.9, 6.0]).due(0.0) == []
    assert filled([0, 4.9, 6.1]).due(0.0) == [0]


def test_a_silent_device_closes_all_of_its_windows() -> None:
    windows = filled([0, 7], now_s=10.0)
    assert windows.due(11.9) == [0]
    assert windows.due(12.0) == [0, 5 * SECOND]


def test_a_window_closes_in_time_though_the_devices_event_time_stands_still() -> None:
    windows = filled([0, 1], now_s=10.0)
    for number in range(1, 10):
        for piece in split(task, Message(number, None), events("d0", 2 + number, [1])):
            windows.add(piece, 10.0 + number)
    last_s = 10.0 + task.open_s
    windows.heard_s = last_s  # it is never silent
    assert windows.due(last_s - 0.1) == []
    assert windows.due(last_s) == [0]


def test_a_watermark_from_the_store_makes_old_rows_late() -> None:
    windows = DeviceWindows(task, 100 * SECOND, 0.0)
    for piece in split(task, Message(0, None), events("d0", 0, [3])):
        windows.add(piece, 0.0)
    assert windows.due(0.0) == [0]


@given(st.lists(st.floats(0, 60), min_size=1, max_size=30))
def test_splitting_keeps_every_row_in_its_window(times_s: list[float]) -> None:
    whole = events("d0", 7, times_s)
    pieces = list(split(task, Message(0, None), whole))
    seqs = [s for p in pieces for s in p.events.rows.column("seq").to_pylist()]
    assert seqs == list(range(7, 7 + len(times_s)))
    for piece in pieces:
        assert piece.events.first == piece.events.rows.column("seq")[0].as_py()
        for time in piece.events.rows.column("time").cast("int64").to_pylist():
            assert time - time % task.window_us == piece.window


def test_the_pieces_of_a_window_are_taken_in_event_time() -> None:
    windows = DeviceWindows(task, -1, 0.0)
    for first, time_s in ((5, 4.0), (9, 1.0), (2, 2.5)):
        for piece in split(task, Message(first, None), events("d0", first, [time_s])):
            windows.add(piece, 0.0)
    assert [piece.events.first for piece in windows.take(0)] == [9, 2, 5]
    assert windows.open == {}


SPANS = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 8), st.integers(0, 2), st.none() | st.integers(0, 25)
    ),
    max_size=8,
)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), SPANS)
def test_labels_that_come_are_those_of_the_events_in_open_windows(
    times_s: list[int], spans: list[tuple[int, int, int, int | None]]
) -> None:
    """Of a span of time, or of one event by its number; the last one counts."""
    windows = filled([float(time) for time in times_s])
    before = {
        start: [p.events.columns.labels.copy() for p in windows.open[start]]
        for start in windows.open
    }
    batch = {start: [p.events for p in windows.open[start]] for start in windows.open}
    expected: dict[int, int] = {}
    for begin, length, label, seq in spans:
        told = labels(
            "d0", 0, [(begin, begin + length)], classes=[label],
            events=[] if seq is None else [seq],
        )  # fmt: skip
        windows.label(label_rows(told.rows))
        for number, time in enumerate(times_s):
            if begin <= time <= begin + length and seq in (None, number):
                expected[number] = label
    found = {
        events.first + row: int(events.columns.labels[row, 0])
        for pieces in windows.open.values()
        for events in (piece.events for piece in pieces)
        for row in np.flatnonzero(events.columns.known)
    }
    own = {
        events.first + row: int(events.columns.labels[row, 0])
        for events in (one for pieces in batch.values() for one in pieces)
        for row in np.flatnonzero(events.columns.known)
    }
    assert found == own | expected
    for start, arrays in before.items():  # what messages share is not changed
        for one, kept in zip(batch[start], arrays, strict=True):
            np.testing.assert_array_equal(one.columns.labels, kept)


def test_labels_by_the_events_names_are_found_among_many_others() -> None:
    windows = filled([0.0, 1.0, 7.0])
    for pieces in windows.open.values():
        pieces[:] = [
            replace(piece, events=replace(piece.events, ids=[f"o{n}" for n in range(piece.rows)]))
            for piece in pieces
        ]
    told = labels("d0", 0, [(50, 50)], classes=[2]).rows.to_pylist()[0]
    nothing = {"from": None, "to": None, "event_seq": None, "event_epoch": None}
    many = [told | nothing | {"event_id": f"x{n}"} for n in range(5000)]
    windows.label([*many, told | nothing | {"event_id": "o1"}])
    found = [
        int(piece.events.columns.labels[1, 0])
        for piece in windows.open[0]
        if piece.events.columns.known[1]
    ]
    assert found == [2]
    assert not windows.open[5 * SECOND][0].events.columns.known.any()
