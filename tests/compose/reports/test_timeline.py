"""What `tidewheel timeline` tells is what the messages say, in order of time."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from compose.reports.timeline import line, print_timeline, seconds, since
from streams.contract.decisions import ZERO, Decision, DesiredState, Kind, Ref, sign
from streams.contract.errors import UsageError
from streams.contract.window_report import ChannelDrift, DriftReport, WindowReport
from streams.fleet.timeline import Entry
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.messages import KEY, received, state, step, window

SECOND = 1_000_000


def at(message: Received, at_s: int) -> Received:
    return replace(message, time_ms=at_s * 1000)


def decided(kind: Kind, at_s: int, seq: int, **fields: object) -> Received:
    about = {"reason": "a test", "evidence": {"e_worse": 25.0}, **fields}
    standing = DesiredState(
        offered=Ref(model="2-bbbbbbbb", digest="b" * 64, size=100_000), share=0.1, stage=1
    )
    decision = Decision.model_validate(
        {"task": "tiny", "task_version": 1, "seq": seq, "prev": ZERO, "kind": kind,
         "model": "2-bbbbbbbb", "time_us": at_s * SECOND, "key": "0" * 16, "standing": standing,
         **about}
    )  # fmt: skip
    return received("releases", "tiny", sign(decision, KEY))


def drifting(device: str, number: int, at_s: int, *, alarm: bool, revision: int = 0) -> Received:
    channel = ChannelDrift(
        channel="x", kind="mean", n=9, psi=0.5, jensen_shannon=0, hellinger=0, total_variation=0,
        threshold=0.2, alarm=alarm,
    )  # fmt: skip
    report = DriftReport(
        windows=3, segments=30, decided=True, alarm=alarm, worst="x", share=0.5, channels=[channel]
    )
    made = WindowReport.decode(window(device, number, revision).value)
    return at(received("windows", device, made.model_copy(update={"drift": report})), at_s)


def entries(task: str, messages: list[Received]) -> list[Entry]:
    view = FleetView(task)
    for message in messages:
        view.absorb(message)
    return view.timeline.entries


def told(*messages: Received) -> list[str]:
    """The entries' texts."""
    return [entry.text for entry in entries("tiny", list(messages))]


def test_all_of_it_in_order_of_time_each_once() -> None:
    run = [
        step("requested", time_us=1 * SECOND, reason="agreement is low"),
        step("aggregated", time_us=2 * SECOND, round=1, samples=9, metrics={"seconds": 1.5}),
        step("admitted", time_us=2 * SECOND, round=1, device="d0"),
        step("promoted", time_us=3 * SECOND, model="2-bbbbbbbb", reason="better by 0.1",
             metrics={"held_out": 0.9}),
    ]  # fmt: skip
    rollout = [
        decided("candidate", 4, 2),
        decided("stage", 5, 3, reason="offered to 1 device"),
        decided("rolled-back", 8, 4, reason="worse"),
        decided("keys", 9, 5, model=None, evidence={}),
    ]
    device = state(
        "d1", time_us=7 * SECOND,
        refused={"2-bbbbbbbb": "late: p99", "1-aaaaaaaa": "withdrawn: told to"},
    )  # fmt: skip
    later = state("d1", time_us=30 * SECOND, refused={"2-bbbbbbbb": "late: p99"})
    messages = [*reversed(rollout), device, later, *run, *run, received("rounds", "", b"x")]
    found = entries("tiny", messages)
    assert [e.text for e in found] == [
        "run 7 started",
        "run 7, round 1: updates aggregated, 9 samples",
        "run 7 passed the gate with 2-bbbbbbbb",
        "decision 2: 2-bbbbbbbb passed the gate and waits for its canary",
        "decision 3: 2-bbbbbbbb goes to stage 1",
        "device d1 does not serve 2-bbbbbbbb",
        "decision 4: 2-bbbbbbbb is rolled back",
        "decision 5: keys",
    ]
    assert found[2].reason == "better by 0.1"
    assert found[2].evidence == {"held_out": 0.9}
    assert line(found[6]).endswith("is rolled back: worse")
    assert line(found[5]).endswith("does not serve 2-bbbbbbbb: late: p99")


def test_drift_begins_and_ends_once_per_device() -> None:
    texts = told(
        drifting("d0", 1, 10, alarm=False),
        drifting("d0", 2, 20, alarm=True),
        drifting("d0", 2, 20, alarm=True),
        *(drifting("d0", n, 10 * n, alarm=True) for n in (3, 4, 5)),
        drifting("d1", 1, 55, alarm=True),
        drifting("d0", 1, 57, alarm=False, revision=1),  # a late row of the past
        drifting("d0", 6, 60, alarm=False),
    )
    assert [text for text in texts if "drift" in text] == [
        "device d0: inputs drift", "device d1: inputs drift", "device d0: inputs no longer drift",
    ]  # fmt: skip


def test_alarms_that_come_and_go_are_one_line() -> None:
    once = [drifting("d0", n, 10 * n, alarm=n in (2, 3)) for n in range(1, 5)]
    (entry,) = [e for e in entries("tiny", once) if e.kind == "drift"]
    assert entry.text == "device d0: inputs drifted for 2 windows"
    often = [drifting("d0", n, 10 * n, alarm=n % 2 == 0) for n in range(1, 100)]
    (entry,) = [e for e in entries("tiny", often) if e.kind == "drift"]
    assert entry.text == "device d0: inputs drifted 49 times, for at most 3 windows each"
    lasting = [drifting("d0", n, 10 * n, alarm=n > 99) for n in range(100, 105)]
    assert [e.text for e in entries("tiny", often + lasting) if e.kind == "drift"] == [
        "device d0: inputs drift"
    ]


def test_drift_tells_where_and_how_much() -> None:
    found = entries("tiny", [drifting("d0", 2, 20, alarm=True)])
    (entry,) = [e for e in found if e.kind == "drift"]
    assert (entry.time_us, entry.about, entry.reason) == (20 * SECOND, "d0", "x most")
    assert entry.evidence == {"share": 0.5, "segments": 30.0, "psi": 0.5, "threshold": 0.2}


def test_agreement_is_told_by_day_and_release() -> None:
    day = 86_400
    found = entries(
        "tiny",
        [
            at(window("d0", 1, agreeing=6, compared=8), day),
            at(window("d1", 1, agreeing=2, compared=8, model="1-aaaaaaaa.p3"), day + 5),
            at(window("d1", 1, agreeing=2, compared=8, model="1-aaaaaaaa.p3"), day + 9),
            at(window("d0", 2, compared=0, agreeing=0, model="2-bbbbbbbb"), 3 * day),
        ],
    )
    assert [(e.about, e.time_us // SECOND) for e in found] == [
        ("1-aaaaaaaa", day + 5), ("2-bbbbbbbb", 3 * day),
    ]  # fmt: skip
    assert found[0].evidence["agreement"] == 0.5
    assert (found[0].evidence["windows"], found[0].evidence["devices"]) == (2.0, 2.0)
    assert "0.50 (16 events)" in found[0].text
    assert found[1].text.endswith("no event compared")


def test_lines_and_json_tell_the_same() -> None:
    found = entries("tiny", [decided("served", 4, 2)])
    for as_json in (False, True):
        out = io.StringIO()
        print_timeline(found, Console(file=out, width=40), as_json=as_json)
        (text,) = out.getvalue().splitlines()
        if as_json:
            assert Entry(**json.loads(text)) == found[0]
        else:
            assert text == line(found[0])


def test_the_last_hours_alone() -> None:
    found = entries("tiny", [decided("served", 100, 1), decided("held", 8000, 2)])
    assert since(found, None) == found
    assert since(found, seconds("2h"), 9000.0) == found[1:]
    assert [seconds(text) for text in ("90s", "30m", "2h", "7d")] == [90, 1800, 7200, 604_800]


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 h", "2w", "1.5h"])
def test_a_wrong_time_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="write it as 90s, 30m, 2h or 7d"):
        seconds(text)
