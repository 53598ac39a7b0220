"""Sessions, counts and a task's own windows against plain loops over sorted events."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.task import Count, Session, Task, Window
from streams.worker.windows.cut import open_windows
from streams.worker.windows.tumbling import DeviceWindows, Message, split
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import SECOND, events

LATENESS_S = 3
KINDS: dict[str, Window] = {"session": Session(2, longest_s=9), "count": Count(3, longest_s=20)}


def plain(kind: str, times: list[int]) -> list[list[int]]:
    """The windows of sorted times, seconds: one loop, with the numbers of KINDS."""
    found: list[list[int]] = []
    for time in times:
        window = found[-1] if found else []
        if kind == "session":
            joins = window and time - window[-1] <= 2 and time - window[0] <= 9
        else:
            joins = window and time - window[0] <= 20 and (len(window) < 3 or time == window[-1])
        if joins:
            window.append(time)
        else:
            found.append([time])
    return found


def seconds(windows: DeviceWindows, start: int) -> list[int]:
    pieces = windows.take(start)
    assert all(piece.window == start for piece in pieces)
    times = np.concatenate([piece.events.columns.times for piece in pieces])
    return sorted((times // SECOND).tolist())


def of_kind(kind: str) -> Task:
    return replace(tiny, window=KINDS[kind], lateness_s=LATENESS_S)


def sent(windows: DeviceWindows, task: Task, number: int, times: list[int], now_s: float) -> None:
    """A message of consecutive events, which come in this order."""
    batch = events("d0", 100 * number, [float(time) for time in times])
    for piece in split(task, Message(number, None), batch):
        windows.add(piece, now_s)


# Times, and by how much each event comes later than its time says.
disorder = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, LATENESS_S)), min_size=1, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KINDS)), disorder, st.lists(st.integers(1, 5), max_size=20))
def test_windows_are_those_of_the_sorted_events_though_they_come_in_disorder(
    kind: str, coming: list[tuple[int, int]], sizes: list[int]
) -> None:
    task = of_kind(kind)
    arriving = [time for time, _ in sorted(coming, key=lambda each: sum(each))]
    windows, found = open_windows(task, -1, None, 0.0), dict[int, list[int]]()
    number = 0
    while arriving:
        size = sizes[number] if number < len(sizes) else 4
        part, arriving = arriving[:size], arriving[size:]
        sent(windows, task, number, part, 0.0)
        number += 1
        for start in windows.due(0.0):
            assert start not in found
            found[start] = seconds(windows, start)
    for start in windows.due(1e9):
        assert start not in found
        found[start] = seconds(windows, start)
    wanted = plain(kind, sorted(time for time, _ in coming))
    assert found == {window[0] * SECOND: window for window in wanted}
    assert not windows.busy


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.booleans())),
)
def test_no_event_is_lost_however_late_it_comes_and_whenever_the_device_is_silent(
    kind: str, messages: list[tuple[list[int], bool]]
) -> None:
    task, windows = of_kind(kind), open_windows(of_kind(kind), -1, None, 0.0)
    found, closed = list[int](), list[tuple[int, int]]()
    for number, (times, silent) in enumerate(messages):
        sent(windows, task, number, times, 0.0)
        for start in windows.due(1e9 if silent else 0.0):
            own = seconds(windows, start)
            assert start <= own[0] * SECOND
            found += own
            closed.append((start, own[-1] * SECOND))
    for start in windows.due(1e9):
        found += seconds(windows, start)
    assert sorted(found) == sorted(time for times, _ in messages for time in times)


def closing(kind: str, *messages: list[int], newest: tuple[int, int] | None = None) -> Callable:
    task = of_kind(kind)
    last = -1 if newest is None else newest[1] * SECOND
    windows = open_windows(task, last, None if newest is None else newest[0] * SECOND, 0.0)
    for number, times in enumerate(messages):
        sent(windows, task, number, times, 0.0)
    return lambda now_s: [
        (start // SECOND, seconds(windows, start)) for start in windows.due(now_s)
    ]


def test_a_late_event_of_the_last_closed_session_is_its_next_revision() -> None:
    late = closing("session", [12], newest=(10, 30))
    assert late(0.0) == [(10, [12])]


def test_a_session_that_silence_closed_goes_on_where_the_next_event_is_near() -> None:
    near = closing("session", [12, 20], newest=(10, 11))
    assert near(1e9) == [(10, [12]), (20, [20])]
    in_disorder = closing("session", [12, 3], newest=(10, 11))
    assert in_disorder(1e9) == [(3, [3]), (10, [12])]


def test_late_events_of_older_sessions_are_sessions_of_their_own() -> None:
    late = closing("session", [3, 4, 9], newest=(30, 40))
    assert late(0.0) == [(3, [3, 4]), (9, [9])]


def test_a_count_that_was_closed_takes_no_later_events() -> None:
    assert closing("count", [12, 13], newest=(10, 11))(1e9) == [(12, [12, 13])]


def test_the_guides_own_kind_of_windows_is_cut_as_it_says() -> None:
    """Days of the work week, and a weekend."""
    page = (Path(__file__).parents[4] / "docs/how-to/own-task.md").read_text()
    (code,) = re.findall(r"```python\n(class Workdays.*?)```", page, re.DOTALL)
    hour, day = 3600, 86_400
    names: dict[str, Any] = {"MONDAY_US": 4 * day * SECOND, "DAY_US": day * SECOND}
    exec(code, names)
    task = replace(tiny, window=names["Workdays"](), lateness_s=0)
    windows = open_windows(task, -1, None, 0.0)
    friday, saturday, sunday, monday = (n * day for n in (8, 9, 10, 11))
    sent(windows, task, 0, [friday + hour, saturday + hour, sunday + hour, monday + hour], 0.0)
    assert [(start // SECOND, seconds(windows, start)) for start in windows.due(0.0)] == [
        (friday, [friday + hour]),
        (saturday, [saturday + hour, sunday + hour]),
    ]
