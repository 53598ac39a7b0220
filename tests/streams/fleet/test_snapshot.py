"""A view that is written down and read again goes on as if it had not been."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.recent_reports import RECENT, RecentReports
from streams.fleet.snapshot import decode, encode
from streams.fleet.timeline import ENTRIES
from streams.fleet.view import RUN_EVENTS, FleetView
from streams.kafka.reader import Received
from tests.compose.messages import TASK, received, release, state, step, window

DEVICES = ("d0", "d1", "d2")


def drifting(device: str, start_s: int, *, alarm: bool) -> Received:
    report = WindowReport.decode(window(device, start_s).value)
    drift = DriftReport(windows=1, segments=9, decided=True, alarm=alarm, worst="x", share=0.5)
    return received("windows", device, report.model_copy(update={"drift": drift}))


devices = st.sampled_from(DEVICES)
messages = st.lists(
    st.one_of(
        st.builds(
            lambda d, n, e: state(d, produced=n, epoch=e, refused={"2-b": "late"} if n > 5 else {}),
            devices, st.integers(0, 9), st.sampled_from(("e1", "e2")),
        ),
        st.builds(window, devices, st.integers(0, 5), st.integers(0, 2)),
        st.builds(
            lambda d, n, a: drifting(d, n, alarm=a), devices, st.integers(0, 5), st.booleans()
        ),
        st.builds(lambda k, n: step(k, time_us=n, round=1), st.sampled_from(
            ("requested", "admitted", "evaluated", "promoted", "finished")), st.integers(0, 5)),
        st.builds(lambda n: release(f"{n}-aaaaaaaa", seq=n), st.integers(1, 4)),
        st.just(received("fleet", "d0", b"{")),
    ),
    max_size=30,
)  # fmt: skip


def absorbed(view: FleetView, found: list[Received]) -> FleetView:
    for offset, message in enumerate(found):
        view.absorb(replace(message, offset=offset, time_ms=offset * 1000))
    return view


def shown(view: FleetView) -> object:
    """All that anybody reads of it."""
    return (
        view.devices, view.producers, view.heard_ms, view.epochs, view.agreement, view.windows,
        view.windows_late, view.drift, view.scored, view.decisions, view.rounds, view.earlier,
        view.timeline.entries, view.offsets, view.unreadable, view.unseen, view.reports.dump(),
    )  # fmt: skip


@given(messages, st.integers(0, 30))
def test_it_goes_on_as_if_it_had_not_been_written(found: list[Received], cut: int) -> None:
    whole = absorbed(FleetView(TASK), found)
    view, at_us = decode(encode(absorbed(FleetView(TASK), found[:cut]), 7))
    assert at_us == 7
    for offset, message in list(enumerate(found))[cut:]:
        view.absorb(replace(message, offset=offset, time_ms=offset * 1000))
    assert shown(view) == shown(whole)


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_other_bytes_are_named(data: bytes, at: int, byte: int) -> None:
    sound = bytearray(encode(absorbed(FleetView(TASK), [state("d0"), window("d0", 1)]), 7))
    for made in (data, bytes(sound[:at])):
        if len(made) < len(sound):
            with pytest.raises(MalformedRecord):
                decode(made)
    sound[at % len(sound)] = byte
    with contextlib.suppress(MalformedRecord):  # nothing else
        assert decode(bytes(sound))[0].task


def test_a_figure_that_is_no_number_does_not_spoil_the_snapshot() -> None:
    view = absorbed(FleetView(TASK), [step("evaluated", metrics={"held_out": float("nan")})])
    found, _ = decode(encode(view, 1))
    assert len(found.rounds) == len(view.rounds)


def test_its_size_depends_on_the_fleet_and_not_on_its_past() -> None:
    def size(days: int) -> int:
        view = FleetView(TASK)
        offset = 0
        for day in range(days):
            for hour in range(0, 24, 6):
                for device in DEVICES:
                    offset += 1
                    report = window(device, (day * 24 + hour) * 3600)
                    at_ms = (day * 24 + hour) * 3_600_000
                    view.absorb(replace(report, offset=offset, time_ms=at_ms))
                    view.absorb(state(device, produced=offset))
            view.absorb(step("admitted", run=str(day), round=1, device="d0", time_us=day))
        assert view.windows == days * 4 * 3
        assert view.count("admitted") == days
        return len(encode(view, 1))

    year, years = size(420), size(840)  # days of agreement are kept for DAYS
    assert years < 1.2 * year


def test_of_the_timeline_the_newest_lines_are_kept() -> None:
    view = FleetView(TASK)
    for n in range(ENTRIES + 500):
        view.absorb(step("promoted", run=str(n), time_us=n, model="2-b"))
    assert len(view.timeline.entries) == ENTRIES
    assert view.timeline.entries[0].about == "500"


def test_of_many_runs_what_is_said_of_devices_goes_first() -> None:
    view = FleetView(TASK)
    for run in range(30):
        view.absorb(step("requested", run=str(run), time_us=run))
        for n in range(RUN_EVENTS // 20):
            view.absorb(step("admitted", run=str(run), device=f"d{n}", time_us=run))
        view.absorb(step("finished", run=str(run), time_us=run))
    assert len(view.rounds) <= RUN_EVENTS
    assert view.count("admitted") == 30 * (RUN_EVENTS // 20)
    assert sum(e.kind == "requested" for e in view.rounds) == 30


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2**50), st.integers(0, 99))))
def test_recent_reports_are_recognized(rows: list[tuple[str, int, int]]) -> None:
    seen, last = RecentReports(), {}
    for device, at, revision in rows:
        name = at, min(revision, 63)
        known = last.setdefault(device, [])
        assert seen.is_new(device, at, revision) == (name not in known[-RECENT:])
        if name not in known[-RECENT:]:
            known.append(name)
    again = RecentReports.load(seen.dump())
    assert again.dump() == seen.dump()
