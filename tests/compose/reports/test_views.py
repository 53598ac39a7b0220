"""What `tidewheel status` and `timeline` print is what the topics say, for a person and as JSON;
without a broker it is what `up` saw last."""

import io
import json
import re
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compose.cli.views import ago, entry_line
from compose.launcher.state_dir import StateDir
from compose.reports.follower import Follower, Lag, PartitionLag, last_seen
from compose.reports.problems import Status, problems
from compose.reports.status import ROWS, print_status, read_status, report_of
from streams.contract.decisions import ZERO, Decision, DesiredState, Kind, Ref, sign
from streams.contract.errors import UsageError
from streams.contract.topics import topic_specs
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ChannelDrift, DriftReport, WindowReport
from streams.fleet.following import encode
from streams.fleet.timeline import Entry
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.cli.test_cli import TINY, port_without_listener, together
from tests.compose.messages import KEY, TASK, received, release, state, step, window
from tests.rig.made_up.tiny_task import task as tiny

NOW_S, SECOND = 1_000_000.0, 1_000_000
LAG = Lag([PartitionLag(0, 10, 7, 3), PartitionLag(1, 4, None, 4)])
OFFERED = "2-bbbbbbbb"


def view_of(*messages: Received) -> FleetView:
    view = FleetView(TASK)
    for message in messages:
        view.absorb(message)
    return view


def at(message: Received, at_s: float) -> Received:
    return replace(message, time_ms=round(at_s * 1000))


def shown(show: Callable[[Console], object]) -> str:
    text = io.StringIO()
    show(Console(file=text, width=160))
    return text.getvalue()


def drifting(
    device: str, number: int, at_s: float, *, alarm: bool, revision: int = 0, psi: float = 0.5
) -> Received:
    channel = ChannelDrift(
        channel="x", kind="mean", n=9, psi=psi, hellinger=0, total_variation=0,
        threshold=0.2, alarm=alarm,
    )  # fmt: skip
    report = DriftReport(
        windows=3, segments=30, decided=True, alarm=alarm, worst="x", share=0.5, channels=[channel]
    )
    made = WindowReport.decode(window(device, number, revision).value)
    return at(received("windows", device, made.replace(drift=report)), at_s)


def decided(kind: Kind, at_s: int, seq: int, **fields: object) -> Received:
    stable, offered = (Ref(model=name, digest="b" * 64, size=1) for name in ("1-aaaaaaaa", OFFERED))
    standing = DesiredState(stable=stable, offered=offered, share=0.1, stage=1)
    decision = Decision.of_fields(
        {"task": TASK, "task_version": 1, "seq": seq, "prev": ZERO, "kind": kind, "model": OFFERED,
         "time_us": at_s * SECOND, "key": "0" * 16, "standing": standing, "reason": "a test",
         "evidence": {"e_worse": 25.0}, **fields}
    )  # fmt: skip
    return received("releases", TASK, sign(decision, KEY))


# --- status ---------------------------------------------------------------------------------------


def status_of(*messages: Received, lag: Lag = LAG) -> Status:
    return Status(view_of(*messages), lag, NOW_S)


def heard(device: str, ago_s: float, **fields: Any) -> Received:
    return state(device, time_us=round((NOW_S - ago_s) * 1e6), **fields)


def printed(found: Status) -> str:
    return shown(lambda console: print_status(found, console, as_json=False))


def letter(device: str, ago_s: float, reason: str, part: str = "0/1") -> Received:
    found = received("dead-letters", device, FleetView(TASK).standing)
    headers = [("reason", reason.encode()), ("part", part.encode())]
    return at(replace(found, headers=headers), NOW_S - ago_s)


def test_status_names_devices_whose_events_are_refused() -> None:
    """They count them as delivered; after a while the problem is over."""
    found = status_of(
        heard("d0", 1), heard("d1", 1), letter("d1", 700, "bad-arrow"),
        letter("d0", 60, "from-the-future"), letter("d0", 9, "from-the-future"),
        letter("d0", 9, "from-the-future", "1/2"),
    )  # fmt: skip
    (problem,) = problems(found)
    assert problem.severity == "warning"
    assert problem.text == "Workers refused messages in the last 10 min: 2 from-the-future, of d0"
    assert "from-the-future" in printed(found)
    assert problems(status_of(heard("d1", 1), letter("d1", 700, "bad-arrow"))) == []


def test_devices_whose_events_are_refused_are_named_most_first() -> None:
    found = status_of(
        *(letter(f"d{n}", 60, "bad-arrow") for n in (3, 1, 0, 2)), letter("d4", 9, "bad-arrow")
    )
    assert problems(found)[0].text.endswith("of d0, d1, d2 and 2 more")
    found = status_of(
        *(letter(f"d{n}", 60, "bad-arrow") for n in (3, 1, 0, 2, 4)), letter("d4", 9, "bad-arrow")
    )
    assert problems(found)[0].text.endswith("of d4, d0, d1 and 2 more")


def test_status_shows_devices_rates_versions_and_the_lag() -> None:
    kept = {"origin": "previous", "model": f"{OFFERED}.k1-aaaaaaaa", "base": OFFERED,
            "segments": 51, "loss": 0.02, "base_loss": 0.39, "answers": True, "made_us": 1,
            "since_us": 1}  # fmt: skip
    found = status_of(
        heard("d0", 1, events_per_s=10.5, challenger=kept), heard("d1", 2, events_per_s=4.0),
        heard("d2", 60, events_per_s=99.0),
        heard("d3", 1, events_per_s=99.0, phase="stopped", challenger=kept),
        at(window("d0", 0, events=1000), NOW_S - 61), at(window("d0", 5, events=300), NOW_S - 10),
        at(window("press", 0, events=60), NOW_S - 59),
    )  # fmt: skip
    assert (found.produced_per_s, found.scored_per_s) == (14.5, 6.0)
    text = printed(found)
    rows = {row.split()[1]: row.split()[3:5] for row in text.splitlines() if row.startswith("│")}
    assert (rows["d0"], rows["d2"][0], rows["d3"][0], rows["press"]) == (
        ["keeps", "1-aaaaaaaa"], "silent", "stopped", ["no", "agent"],
    )  # fmt: skip
    for line in (
        "5 devices, 1 without an agent",
        "1 of 4 devices answers with an adapter, an earlier version or a copy:\n"
        "  d0 keeps 1-aaaaaaaa: error 0.02 against 0.39",
        "workers are 7 messages behind (by partition 0: 3, 1: 4)\n",
        "1-aaaaaaaa: agreement with the teacher 0.75 in 24 events\n",
        "d2 is silent. Events wait on a silent device",
    ):
        assert line in text
    every = status_of(*(heard(f"d{n}", 1, challenger=kept) for n in range(5)))
    named = printed(every).partition("5 of 5 devices answer with an adapter")[2].splitlines()
    assert named[4] == "  and 2 more"
    idle = status_of(lag=Lag([PartitionLag(0, 5, None, 5)]))
    assert "5 messages behind (by partition 0: 5); no worker has committed" in printed(idle)


BY_CLASS = {"slow": {"slow": 5, "fast": 1}, "fast": {"fast": 6}}
TAUGHT = {"slow": {"events": 8, "agreeing": 7}, "fast": {"events": 12, "agreeing": 9}}


@pytest.mark.parametrize("labelled", [0, 12])
@pytest.mark.parametrize(
    ("metric", "by_class"),
    [
        ("accuracy", False), ("accuracy", True), ("balanced_accuracy", True), ("brier", False),
        ("within", False), ("mae", False), ("rmse", False),
    ],
)  # fmt: skip
def test_an_agreement_is_said_of_the_events_that_were_judged(
    metric: WindowMetric, by_class: bool, labelled: int
) -> None:
    """Of 30 events 20 have a teacher's answer, and 12 or none a label."""
    classes = {"classes": TAUGHT, "truth": BY_CLASS if labelled else {}} if by_class else {}
    errors = {"error": 3.0, "label_error": 2.0 if labelled else 0.0}
    counts = {"events": 30, "compared": 20, "agreeing": 16, "labelled": labelled,
              "correct": 11 if labelled else 0}  # fmt: skip
    found = status_of(window("d0", 0, metric=metric, **counts, **errors, **classes))
    judge, judged = ("true labels", 12) if labelled else ("the teacher", 20)
    line = rf"^1-aaaaaaaa: \D+ {judge} [\d.]+ in {judged} events$"
    assert re.search(line, printed(found), re.MULTILINE)
    (entry,) = (e for e in found.view.timeline.entries if e.kind == "agreement")
    assert f"({judged} events)" in entry.text


def test_labels_of_a_version_are_those_of_all_devices_whatever_they_serve_now() -> None:
    sure = {"labelled": 10, "truth": {"slow": {"slow": 6, "fast": 4}}, "correct": 6}
    d0 = (window("d0", 5 * n, model=f"{n}-aaaaaaaa", commit=n, **sure) for n in range(1, 5))
    found = status_of(window("d1", 5, model="1-aaaaaaaa", commit=1, **sure), *d0)
    assert report_of(found).truth == {"1-aaaaaaaa": (12, 20)} | {
        f"{n}-aaaaaaaa": (6, 10) for n in (2, 3, 4)
    }
    assert "1-aaaaaaaa: 0.60 right on 20 true labels" in printed(found)


DAY = 86_400.0


@pytest.mark.parametrize(
    ("workers", "waits_s", "open_s", "reported_s", "said"),
    [
        (0, 20.0, 30.0, 5.0, None),  # one may be starting anew
        (0, 240.0, 30.0, 5.0, "No worker runs: 3 messages wait, the oldest for 4 min"),
        (2, 240.0, 30.0, 300.0, "No window is reported: 3 messages wait, the oldest for 4 min"),
        (None, 240.0, 30.0, 300.0, "No window is reported: 3 messages wait"),
        (2, DAY, 30.0, 5.0, None),  # busy with a backlog
        (2, DAY, 2 * DAY, DAY, None),  # a window of a day is still open
        (2, 3 * DAY, 2 * DAY, DAY, "Workers report one 2 days after its first event at the latest"),
        (2, 60.0, 30.0, None, None),  # the first window is still open
        (0, None, 30.0, None, None),
    ],
)
def test_status_says_when_nothing_is_scored(
    workers: int | None,
    waits_s: float | None,
    open_s: float,
    reported_s: float | None,
    said: str | None,
) -> None:
    found = [] if reported_s is None else [at(window("d0", 0, events=60), NOW_S - reported_s)]
    lag = Lag([PartitionLag(0, 10, 7, 3, waits_s=waits_s)], None, workers, open_s)
    text = " ".join(printed(status_of(*found, heard("d0", 1, events_per_s=2.0), lag=lag)).split())
    assert ("critical" in text) == (said is not None)
    assert said is None or said in text


def test_status_says_what_holds_a_run_back_until_one_starts() -> None:
    why = "the last run began less than 60 s ago (--min-interval). It is due because d0 drifts"
    waiting = (
        heard("d0", 1), step("requested", "7"), step("postponed", "", time_us=2, reason=why)
    )  # fmt: skip
    assert f"A run is held back: {why}" in " ".join(printed(status_of(*waiting)).split())
    assert "held back" not in printed(status_of(*waiting, step("requested", "8", time_us=3)))
    assert "held back" not in printed(status_of(*waiting, heard("d0", 0, phase="stopped")))


def test_status_names_problems_with_what_to_do_and_json_has_them_too() -> None:
    paused = {"reason": "manual: look first", "time_us": 10**15, "key": "ab" * 8}
    ref = {"digest": "a" * 64, "size": 1}
    offer = {"stable": {"model": "1-aaaaaaaa", **ref}, "offered": {"model": OFFERED, **ref},
             "share": 0.05, "paused": paused}  # fmt: skip
    found = status_of(
        decided("held", 1, 1, standing=offer), drifting("d0", 0, 1, alarm=False),
        drifting("d0", 10, 2, alarm=True), drifting("d0", 5, 3, alarm=False, revision=1),
        drifting("d1", 0, 4, alarm=True), drifting("d1", 0, 5, alarm=False, revision=1),
        received("fleet", "d9", b"{"), heard("d3", 1, error="no disk"),
    )  # fmt: skip
    text = " ".join(printed(found).split())
    for words in (
        f"{OFFERED} offered to 0 of 1 device, paused", "Inputs drift on 1 of 2 devices: d0 (x)",
        f"manual: look first, signed by key {'ab' * 8}. No run starts until", "d3 says: no disk",
        "1 message of the topics cannot be read. Check what else writes to them",
    ):  # fmt: skip
        assert words in text
    data = json.loads(shown(lambda console: print_status(found, console, as_json=True)))
    assert data == report_of(found).fields()
    assert [p["severity"] for p in data["problems"]] == ["warning"] * 3 + ["note"] * 2
    assert (data["drift"], data["release"]["paused"]) == ({"d0": "x"}, paused)


def test_of_many_devices_the_table_has_the_most_urgent() -> None:
    fleet = [heard(f"d{n:03}", 1) for n in range(60)]
    found = status_of(*fleet, heard("d900", 1, error="no disk"), heard("d901", 900))
    text = printed(found)
    assert "no disk" in text
    assert re.search(r"d901 +│ silent", text)
    assert "12 more devices, 0 need attention: the console and --json have all" in text
    assert text.count("│ d") == ROWS


def test_of_many_devices_that_drift_the_worst_come_first() -> None:
    far = [drifting(f"d{n:03}", 0, NOW_S, alarm=True, psi=n / 10) for n in range(60)]
    text = printed(status_of(*far))
    named = "Inputs drift on 60 of 60 devices: d059 (x), d058 (x), d057 (x) and 57 more; x most on"
    assert f"{named} 60 of them" in " ".join(text.split())
    assert "d059" in text
    assert "│ d009" not in text


def test_so_few_devices_that_drift_as_chance_makes_are_a_note() -> None:
    def severity(alarms: int) -> str:
        fleet = [drifting(f"d{n:03}", 0, NOW_S, alarm=n < alarms) for n in range(80)]
        [found] = [p for p in problems(status_of(*fleet)) if "drift" in p.text]
        return found.severity

    assert (severity(2), severity(3)) == ("note", "warning")


def test_devices_without_an_agent_that_send_nothing_are_named_by_their_events_time() -> None:
    """Not by the time of their last report: history is reported now."""
    day = 86_400
    sent = [
        at(window(f"p{n}", round(NOW_S - ago_s)), NOW_S)
        for n, ago_s in enumerate((60, 3 * day, 9 * day))
    ]
    found = status_of(*sent)
    [gone] = [each for each in problems(found) if "agent" in each.text]
    assert gone.text == (
        "2 of 3 devices without an agent had no event in the last two days, p2 for the longest time"
    )
    assert (gone.severity, gone.advice[:17]) == ("note", "Check what sends ")
    assert re.search(r"p2 .* 9 days ago", printed(found))


def test_a_device_whose_times_are_in_milliseconds_is_named_with_the_unit() -> None:
    view = view_of(at(window("p0", 1_780_000), 1.78e9))
    [gone] = [each for each in problems(Status(view, LAG, 1.78e9)) if "agent" in each.text]
    assert gone.severity == "warning"
    assert "before 1980 have a wrong unit" in gone.advice


def test_windows_that_were_not_read_are_said() -> None:
    found = status_of(window("d0", 0))
    found.view.unseen.update(many=283_388, deleted=7)
    text = " ".join(printed(found).split())
    for words in ("283,388 window reports not counted: if more wait, the newest 50,000 are. A",
                  "7 window reports not counted: deleted before they were read"):  # fmt: skip
        assert words in text


@pytest.mark.kafka
def test_status_is_read_from_a_broker(kafka: BrokerSettings) -> None:
    task = replace(tiny, name=f"t-{uuid.uuid4().hex[:8]}")
    ensure_topics(kafka, topic_specs(task.id, 2))
    report = window("d0", 0, events=120)
    with closing(Producer(kafka)) as producer:
        producer.put(f"{task.id}.windows", report.key, report.value or b"")
        producer.put(f"{task.id}.events", b"d0", b"an event")
        producer.put(f"{task.id}.dead-letters", b"d0", b"?", [("reason", b"bad-arrow")])
    found = read_status(kafka, task)
    assert [each.text for each in problems(found) if "refused" in each.text] != []
    assert (found.scored_per_s, found.lag.messages) == (2.0, 1)


def test_without_a_broker_status_and_timeline_show_what_up_saw_last(tmp_path: Path) -> None:
    address = f"127.0.0.1:{port_without_listener()}"
    words = [TINY, "--kafka", address, "--json"]
    (tmp_path / ".tidewheel").mkdir()
    path = StateDir(tmp_path / ".tidewheel").last_seen
    for data in (b"", b"{", bytes(9), b"\xff" * 40):
        path.write_bytes(data)
        assert last_seen(path) is None
    following = Follower(BrokerSettings(bootstrap=address), TASK)
    following.keep(path)  # nothing was seen, so the file stays
    assert path.read_bytes() == b"\xff" * 40
    for message in (state("d0"), window("d0", 0), release("1-aaaaaaaa"), step("promoted")):
        following.read(lambda view, message=message: view.absorb(message))
    following.keep(path)
    following.keep(tmp_path / "no" / "file")  # a folder that is gone ends nothing
    assert last_seen(path) is not None
    shown, lines, newest = together(
        ["status", *words], ["timeline", *words], ["timeline", *words, "--since", "1s"],
        folder=tmp_path,
    )  # fmt: skip
    assert "what `tidewheel up` saw last" in shown.stderr
    found = json.loads(shown.stdout)
    assert [device["device"] for device in found["devices"]] == ["d0"]
    assert (found["windows"], found["rounds"]["promoted"]) == (1, 1)
    kinds = {json.loads(line)["kind"] for line in lines.stdout.splitlines()}
    assert {"run", "decision"} <= kinds
    assert newest.stdout == ""
    assert encode(view_of(), 1)


# --- timeline -------------------------------------------------------------------------------------


def entries(*messages: Received, kind: str = "") -> list[Entry]:
    return [e for e in view_of(*messages).timeline.entries if kind in ("", e.kind)]


def test_the_timeline_has_all_of_it_in_order_of_time_each_once() -> None:
    run = [
        step("requested", time_us=1 * SECOND, reason="agreement is low"),
        step("aggregated", time_us=2 * SECOND, round=1, samples=9, metrics={"seconds": 1.5}),
        step("admitted", time_us=2 * SECOND, round=1, device="d0"),
        step("promoted", time_us=3 * SECOND, model=OFFERED, reason="better by 0.1",
             metrics={"held_out": 0.9}),
    ]  # fmt: skip
    rollout = [decided("candidate", 4, 2), decided("stage", 5, 3), decided("rolled-back", 8, 4)]
    refused = {OFFERED: "late: p99"}
    more = {**refused, "1-aaaaaaaa": "withdrawn: told to"}
    device = state("d1", time_us=7 * SECOND, refused=more)
    later = state("d1", time_us=30 * SECOND, refused=refused)
    found = entries(*reversed(rollout), device, later, *run, *run)
    assert [e.text for e in found] == [
        "run 7 started",
        "run 7, round 1: updates aggregated, 9 samples",
        f"run 7 passed the gate with {OFFERED}",
        f"decision 2: {OFFERED} passed the gate and waits for its canary",
        f"decision 3: {OFFERED} goes to stage 1",
        f"device d1 does not serve {OFFERED}",
        f"decision 4: {OFFERED} is rolled back",
    ]
    assert (found[2].reason, found[2].evidence) == ("better by 0.1", {"held_out": 0.9})
    assert entry_line(found[5]).endswith(f"does not serve {OFFERED}: late: p99")


def test_drift_begins_and_ends_once_and_alarms_that_come_and_go_are_one_line() -> None:
    found = entries(
        drifting("d0", 1, 10, alarm=False), drifting("d0", 2, 20, alarm=True),
        *(drifting("d0", n, 10 * n, alarm=True) for n in (3, 4, 5)),
        drifting("d1", 1, 55, alarm=True),
        drifting("d0", 1, 57, alarm=False, revision=1),  # a late row of the past
        drifting("d0", 6, 60, alarm=False), kind="drift",
    )  # fmt: skip
    assert [e.text for e in found] == [
        "device d0: inputs drift", "device d1: inputs drift", "device d0: inputs no longer drift",
    ]  # fmt: skip
    assert (found[0].time_us, found[0].about, found[0].reason) == (20 * SECOND, "d0", "x most")
    assert found[0].evidence == {"share": 0.5, "segments": 30.0, "psi": 0.5, "threshold": 0.2}
    once = [drifting("d0", n, 10 * n, alarm=n in (2, 3)) for n in range(1, 5)]
    often = [drifting("d0", n, 10 * n, alarm=n % 2 == 0) for n in range(1, 100)]
    lasting = [drifting("d0", n, 10 * n, alarm=n > 99) for n in range(100, 105)]
    for messages, text in (
        (once, "device d0: inputs drifted for 2 windows"),
        (often, "device d0: inputs drifted 49 times, for at most 3 windows each"),
        (often + lasting, "device d0: inputs drift"),
    ):
        assert [e.text for e in entries(*messages, kind="drift")] == [text]


def test_agreement_is_summed_by_day_and_release() -> None:
    day = 86_400
    personal = window("d1", 1, agreeing=2, compared=8, model="1-aaaaaaaa.p3")
    found = entries(
        at(window("d0", 1, agreeing=6, compared=8), day), at(personal, day + 5),
        at(personal, day + 9), at(window("d0", 2, compared=0, agreeing=0, model=OFFERED), 3 * day),
    )  # fmt: skip
    assert [(e.about, e.time_us // SECOND) for e in found] == [
        ("1-aaaaaaaa", day + 5), (OFFERED, 3 * day),
    ]  # fmt: skip
    assert "0.50 (16 events)" in found[0].text
    assert (found[0].evidence["windows"], found[0].evidence["devices"]) == (2.0, 2.0)
    assert found[1].text.endswith("no event compared")


def test_the_last_hours_are_written_as_times_everywhere() -> None:
    assert [ago(text) for text in ("90s", "30m", "2h", "7d")] == [90, 1800, 7200, 604_800]
    for wrong in ("", "h", "-2h", "2 h", "2w"):
        with pytest.raises(UsageError, match="write a time as 90s, 30m, 2h or 1d"):
            ago(wrong)
