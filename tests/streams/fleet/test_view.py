"""The view is the sum of what the topics say, whatever comes twice, cannot be read, or is written
down between: against a plain fold that keeps every message."""

import contextlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.decisions import Decision, Release
from streams.contract.documents import DeviceState, RoundEvent, model_number
from streams.contract.errors import MalformedRecord
from streams.contract.window_report import DriftReport, ModelWindow, WindowReport
from streams.fleet.agreement import SeenReports
from streams.fleet.following import decode, encode
from streams.fleet.timeline import ENTRIES, Entry
from streams.fleet.view import EPOCHS, NO_AGENT, RUN_EVENTS, SILENT_S, FleetView
from streams.kafka.reader import Received
from tests.compose.messages import TASK, received, release, state, step, window
from tests.rig.made_up.documents import window_report

DEVICES = ("d0", "d1", "d2")


def drifting(device: str, start_s: int, *, alarm: bool) -> Received:
    report = WindowReport.decode(window(device, start_s).value)
    drift = DriftReport(windows=1, segments=9, decided=True, alarm=alarm, worst="x", share=0.5)
    return received("windows", device, report.replace(drift=drift))


def moved(message: Received, offset: int) -> Received:
    return replace(message, offset=offset, time_ms=offset * 1000)


def fold(*messages: Received, view: FleetView | None = None) -> FleetView:
    view = view or FleetView(TASK)
    for message in messages:
        view.absorb(message)
    return view


names = st.sampled_from(DEVICES)
messages = st.lists(
    st.one_of(
        st.builds(
            lambda d, n, e: state(d, produced=n, epoch=e, refused={"2-b": "late"} if n > 5 else {}),
            names, st.integers(0, 9), st.sampled_from(("e1", "e2")),
        ),
        st.builds(window, names, st.integers(0, 5), st.integers(0, 2),
                  st.sampled_from(("1-aaaaaaaa", "1-aaaaaaaa.p3", "2-b"))),
        st.builds(lambda d, n, a: drifting(d, n, alarm=a), names, st.integers(0, 5), st.booleans()),
        st.builds(lambda k, n: step(k, time_us=n, round=1), st.sampled_from(
            ("requested", "admitted", "evaluated", "promoted", "finished")), st.integers(0, 5)),
        st.builds(lambda n: release(f"{n}-aaaaaaaa", seq=n), st.integers(1, 4)),
        st.builds(lambda topic: received(topic, "d0", b"{"), st.sampled_from(
            ("fleet", "windows", "rounds", "releases"))),
    ),
    max_size=30,
).map(lambda found: [moved(message, n) for n, message in enumerate(found)])  # fmt: skip


class Plain:
    """The same figures, each by one look over all messages."""

    def __init__(self, found: list[Received]) -> None:
        kinds = {"fleet": DeviceState, "windows": WindowReport, "rounds": RoundEvent}
        self.unreadable, documents = 0, []
        for message in found:
            kind = message.topic.removeprefix(f"{TASK}.")
            try:
                document: Any = (
                    kinds[kind].decode(message.value) if kind in kinds else decided(message)
                )
            except MalformedRecord:
                self.unreadable += 1
            else:
                documents.append((document, message.time_ms // 1000))
        states = [d for d, _ in documents if isinstance(d, DeviceState)]
        self.devices = {s.device: s for s in states}
        self.rounds = list(
            {d.encode(): d for d, _ in documents if isinstance(d, RoundEvent)}.values()
        )
        self.decisions = {d.seq: d for d, _ in documents if isinstance(d, Decision)}
        once: dict[Any, tuple[WindowReport, int]] = {}
        for document, second in documents:
            if isinstance(document, WindowReport):
                name = document.device, document.window_us, document.revision
                once.setdefault(name, (document, second))
        self.reports = list(once.values())
        self.scored = Counter[int]()
        for report, second in self.reports:
            self.scored[second] += report.events

    @property
    def agreeing(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for report, _ in self.reports:
            for version, part in report.by_release.items():
                compared, agreeing = found.get(version, (0, 0))
                found[version] = compared + part.compared, agreeing + part.agreeing
        return found

    @property
    def alarms(self) -> dict[str, bool]:
        """By device, of the window that is the latest by event time."""
        latest: dict[str, WindowReport] = {}
        for report, _ in self.reports:
            before = latest.get(report.device)
            place = report.window_us, report.revision
            if before is None or place >= (before.window_us, before.revision):
                latest[report.device] = report
        return {name: r.drift.alarm for name, r in latest.items() if r.drift is not None}


def decided(message: Received) -> Decision:
    return Release.decode(message.value).decision


def agrees(view: FleetView, plain: Plain) -> None:
    assert view.devices == plain.devices
    assert set(view.producers) == {r.device for r, _ in plain.reports} - set(plain.devices)
    assert view.rounds == plain.rounds
    assert view.decisions == plain.decisions
    assert view.windows == sum(r.revision == 0 for r, _ in plain.reports)
    assert view.windows_late == sum(r.revision > 0 for r, _ in plain.reports)
    found = {name: (a.compared, a.agreeing) for name, a in view.agreement.items()}
    assert found == plain.agreeing
    assert {name: d.alarm for name, d in view.drift.items()} == plain.alarms
    assert view.scored == plain.scored
    assert view.unreadable == plain.unreadable


def shown(view: FleetView) -> object:
    """All that anybody reads of it."""
    return {**vars(view), "reports": view.reports.dump(), "news": None}


@given(messages, st.integers(0, 30))
def test_it_is_a_plain_fold_of_all_messages_also_from_a_snapshot(
    found: list[Received], cut: int
) -> None:
    whole = fold(*found)
    agrees(whole, Plain(found))
    view, at_us = decode(encode(fold(*found[:cut]), 7))
    assert at_us == 7
    assert shown(fold(*found[cut:], view=view)) == shown(whole)


@given(messages)
def test_what_comes_again_changes_nothing_and_is_not_taken(found: list[Received]) -> None:
    sound = [m for m in found if m.value != b"{" and not m.topic.endswith("fleet")]
    view = fold(*sound)
    before = shown(replace(view, offsets=dict(view.offsets)))
    newest = {m.key: m for m in sound if m.topic.endswith("releases")}.values()
    again = [*(m for m in sound if not m.topic.endswith("releases")), *newest]
    assert [view.absorb(message) for message in again] == [None] * len(again)
    assert shown(replace(view, offsets={})) == {**before, "offsets": {}}  # type: ignore[dict-item]


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_bytes_that_are_no_snapshot_are_named(data: bytes, at: int, byte: int) -> None:
    sound = bytearray(encode(fold(state("d0"), window("d0", 1)), 7))
    for made in (data, bytes(sound[:at])):
        if len(made) < len(sound):
            with pytest.raises(MalformedRecord):
                decode(made)
    sound[at % len(sound)] = byte
    with contextlib.suppress(MalformedRecord):  # nothing else
        assert decode(bytes(sound))[0].task


def test_its_size_depends_on_the_fleet_and_not_on_its_past() -> None:
    """Years: windows, lost spools, runs, versions and decisions, one each a day."""

    def size(days: int) -> int:
        view = FleetView(TASK)
        for day in range(1, days + 1):
            report = window("d0", day * 86_400, 0, f"{day // 10}-aaaaaaaa", commit=day)
            fold(
                replace(report, time_ms=day * 86_400_000),
                state("d0", produced=day, epoch=f"e{day}"),
                step("admitted", run=str(day), round=1, device="d0", time_us=day),
                release(f"{day}-aaaaaaaa", seq=day),
                view=view,
            )
        assert (view.windows, view.count("admitted")) == (days, days)
        assert len(view.ended["d0"]) == EPOCHS
        assert view.ended["d0"][-1].epoch == f"e{days - 1}"
        return len(encode(view, 1))

    few, many = size(2100), size(4200)
    assert many < 1.2 * few


def test_of_many_runs_what_is_said_of_devices_goes_first_and_the_newest_lines_stay() -> None:
    view = FleetView(TASK)
    for run in range(30):
        fold(step("requested", run=str(run), time_us=run), view=view)
        for n in range(RUN_EVENTS // 20):
            fold(step("admitted", run=str(run), device=f"d{n}", time_us=run), view=view)
        fold(step("finished", run=str(run), time_us=run), view=view)
    assert len(view.rounds) <= RUN_EVENTS
    assert view.count("admitted") == 30 * (RUN_EVENTS // 20)
    assert sum(e.kind == "requested" for e in view.rounds) == 30
    for n in range(ENTRIES + 500):
        fold(step("promoted", run=str(n), time_us=100 + n, model="2-b"), view=view)
    assert [len(view.timeline.entries), view.timeline.entries[0].about] == [ENTRIES, "500"]
    for n in range(2 * ENTRIES):
        view.timeline.add(Entry(n, "drift", f"d{n}", "inputs drift"))
    kinds = Counter(entry.kind for entry in view.timeline.lines)
    assert kinds.total() == ENTRIES
    assert kinds["run"] == ENTRIES // 2  # they are not driven out


commits = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 5), st.integers(0, 9)),
    max_size=20,
)


@given(commits)
def test_each_report_counts_once_whatever_of_which_commit_comes_again(
    sent: list[tuple[int, int, int, int]],
) -> None:
    """Of a partition's rows, or labels, a commit of some reports, of which a part came before when
    its publication was cut off; and then a commit from before, by a reader that starts earlier."""
    seen, numbers, counted = SeenReports(), Counter[tuple[int, int]](), Counter[str]()
    every: list[WindowReport] = []
    for partition, events, size, part in sent:
        numbers[partition, events] += 1
        about: dict[str, Any] = {"partition": partition, "commit": numbers[partition, events]}
        about |= {"store": "a"}
        models = {"1-a": ModelWindow(events=events, agreeing=0)}
        reports = [window_report(f"d{n}", 0, models, **about) for n in range(size)]
        every += reports
        for report in [*reports[:part], *reports, *every[: len(every) - size][-part:]]:
            counted[report.encode().decode()] += seen.is_new(report)
        seen = SeenReports.load(seen.dump())
    assert counted == Counter({report.encode().decode(): 1 for report in every})
    again = [report.replace(store="b") for report in every[:1]]
    assert all(seen.is_new(report) for report in again), "another store begins anew"


@pytest.mark.parametrize(
    ("fields", "condition"),
    [
        ({}, "fine"),
        ({"error": "no sensor"}, "error"),
        ({"time_us": 0}, "silent"),
        ({"time_us": 0, "error": "no sensor"}, "silent"),
        ({"time_us": 0, "heartbeat_s": 40.0}, "fine"),
        ({"time_us": 0, "phase": "stopped"}, "stopped"),
    ],
)
def test_one_word_for_a_device_and_one_meaning_of_silent(
    fields: dict[str, Any], condition: str
) -> None:
    now_s = SILENT_S + 1
    view = fold(state("d0", **{"time_us": round(now_s * 1e6), "events_per_s": 2.0, **fields}))
    device = view.devices["d0"]
    assert view.condition(device, now_s) == condition
    assert view.is_silent(device, now_s) == (condition == "silent")
    assert len(view.present(now_s)) == (condition in ("fine", "error"))
    assert view.produced_per_s(now_s) == 2.0 * len(view.present(now_s))
    fold(drifting("d0", 1, alarm=True), view=view)
    assert view.condition(device, now_s) == ("drifting" if condition == "fine" else condition)


def test_a_device_without_an_agent_is_never_silent() -> None:
    view = fold(window("press", 0))
    assert view.condition(view.everyone["press"], 1e9) == NO_AGENT
    assert list(fold(state("press"), view=view).producers) == []


def test_a_device_that_is_forgotten_is_in_no_figure_until_it_is_heard_again() -> None:
    gone = [state("d0"), state("d0", epoch="e2"), drifting("d0", 0, alarm=True), window("p0", 1)]
    view = fold(state("d1"), *(moved(message, n) for n, message in enumerate(gone)))
    for name in ("d0", "p0", "never-heard"):
        view.absorb(Received(f"{TASK}.fleet", 0, 9, name.encode(), None, []))
    assert set(view.everyone) == {device for device, _ in view.epochs} == {"d1"}
    assert (view.drift, view.windows) == ({}, 2)
    assert view.offered_to == "0 of 1 device"
    assert set(fold(state("d0"), view=view).devices) == {"d0", "d1"}


def test_the_first_and_the_last_version() -> None:
    score = {"answers": 1}
    assert (fold().first_model, fold().last_model) == (None, None)
    devices = fold(
        state("d0", active="10-c", accuracy={"10-c": score, "2-b": score}),
        state("d1", active="2-b", accuracy={"2-b": score}),
    )
    assert (devices.first_model, devices.last_model) == ("2-b", "10-c")  # numbers, not text
    fold(release("11-dddddddd", 3), view=devices)
    assert devices.last_model == "10-c"  # offered, but no device serves it yet
    assert [model_number(name) for name in ("3-1f2e3d4c", "x-1", "")] == [3, -1, -1]


def test_news_are_of_what_is_new_and_large_enough() -> None:
    first = release("1-aaaaaaaa", 1)
    found = fold(first, release("1-aaaaaaaa", 1, key="tiny/00000001"), release("2-bbbbbbbb", 2),
                 step("started", "1"), step("finished", "1"), step("requested", "2"))  # fmt: skip
    assert list(found.news) == [
        "release: all devices serve 1-aaaaaaaa: a test",
        "release: all devices serve 2-bbbbbbbb: a test",
        "run 2 started: ",
    ]
    assert [(e.run, e.kind) for e in found.current_run] == [("2", "requested")]
