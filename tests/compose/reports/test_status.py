"""What `tidewheel status` shows is the sum of the topics, the group's offsets and the clock."""

import dataclasses
import io
import json
import re
import uuid
from typing import Any

import pytest
from rich.console import Console

from compose.reports.lag import Lag, PartitionLag
from compose.reports.status import ROWS, Status, print_status, read_status, report_of
from streams.contract.decisions import Decision, sign
from streams.contract.topics import topic_specs
from streams.contract.window_report import WindowReport
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.messages import KEY, TASK, received, state, window

NOW_S = 1_000_000.0
LAG = Lag([PartitionLag(0, 10, 7, 3), PartitionLag(1, 4, None, 4)])


def status_of(*messages: Received, lag: Lag = LAG) -> Status:
    view = FleetView(TASK)
    for message in messages:
        view.absorb(message)
    return Status(view, lag, NOW_S)


def heard(device: str, ago_s: float, **fields: Any) -> Received:
    return state(device, time_us=round((NOW_S - ago_s) * 1e6), **fields)


def reported(device: str, start_s: int, ago_s: float, events: int) -> Received:
    message = window(device, start_s, events=events)
    return dataclasses.replace(message, time_ms=round((NOW_S - ago_s) * 1000))


def drifting(device: str, start_s: int, worst: str, alarm: bool, revision: int = 0) -> Received:
    report = WindowReport.decode(window(device, start_s, revision).value)
    drift = {"windows": 3, "segments": 30, "decided": True, "alarm": alarm, "worst": worst,
             "share": 0.5}  # fmt: skip
    changed = WindowReport.model_validate({**report.model_dump(), "drift": drift})
    return received("windows", device, changed)


def as_json(found: Status) -> dict[str, Any]:
    return report_of(found).model_dump(mode="json")


def printed(found: Status) -> str:
    text = io.StringIO()
    print_status(found, Console(file=text, width=140), as_json=False)
    return text.getvalue()


def test_the_devices_that_are_heard_of_produce() -> None:
    found = status_of(
        heard("d0", 1, events_per_s=10.5),
        heard("d1", 2, events_per_s=4.0),
        heard("d2", 60, events_per_s=99.0),
        heard("d3", 1, events_per_s=99.0, phase="stopped"),
    )
    assert found.produced_per_s == 14.5
    assert [row.split()[3] for row in printed(found).splitlines() if " d2 " in row] == ["silent"]


def test_a_device_that_keeps_an_earlier_version_says_why() -> None:
    kept = {"model": "1-aaaaaaaa", "against": "2-bbbbbbbb", "segments": 51, "loss": 0.02,
            "offered_loss": 0.39, "since_us": 1}  # fmt: skip
    text = printed(status_of(heard("d0", 1, kept=kept), heard("d1", 1)))
    assert " keeps 1-aaaaaaaa " in text
    assert "1 of 2 devices keeps an earlier version:\n" in text
    assert "  d0 keeps 1-aaaaaaaa: error 0.02 against 0.39 on 51 segments\n" in text
    assert "keep" not in printed(status_of(heard("d1", 1)))


def test_what_was_reported_in_the_last_minute_is_scored_and_counts_once() -> None:
    once = reported("d0", 5, 10, 300)
    found = status_of(reported("d0", 0, 61, 1000), once, reported("d1", 0, 59, 60), once)
    assert found.scored_per_s == 6.0
    assert as_json(found)["rates"] == {"produced_per_s": 0, "scored_per_s": 6.0}


def test_the_latest_report_of_a_device_says_whether_it_drifts() -> None:
    found = status_of(
        drifting("d0", 0, "x", False),
        drifting("d0", 10, "y", True),
        drifting("d0", 5, "z", False, revision=1),  # late: of an older window
        drifting("d1", 0, "x", True),
        drifting("d1", 0, "x", False, revision=1),
        drifting("d2", 0, "x", True),
        window("d3", 0),
    )
    assert found.alarms == {"d0": "y", "d2": "x"}
    assert as_json(found)["drift"] == {"watched": 3, "alarming": 2, "worst": found.alarms}
    assert "drift alarms on 2 of 3 devices: d0 (y), d2 (x)\n" in printed(found)


def test_a_device_without_an_agent_is_in_the_table_and_in_the_counts() -> None:
    found = status_of(heard("d0", 1), window("d0", 0), drifting("press", 0, "x", False))
    text = printed(found)
    assert "2 devices, 1 without an agent" in text
    assert [row.split()[3:5] for row in text.splitlines() if " press " in row] == [["no", "agent"]]
    assert [each["device"] for each in as_json(found)["without_agent"]] == ["press"]


def test_no_alarm_and_no_reference_are_told_apart() -> None:
    assert "drift alarms on 0 of 1 device\n" in printed(status_of(drifting("d0", 0, "x", False)))
    assert "drift is not watched" in printed(status_of(window("d0", 0)))


def test_a_paused_rollout_is_told_with_who_and_why() -> None:
    refs = {name: {"model": f"{n}-aaaaaaaa", "digest": "a" * 64, "size": 1}
            for n, name in enumerate(("stable", "offered"), 1)}  # fmt: skip
    paused = {"reason": "manual: look first", "time_us": 10**15, "key": "ab" * 8}
    standing = {**refs, "share": 0.05, "stage": 1, "paused": paused}
    made = Decision.model_validate(
        {"task": TASK, "task_version": 1, "seq": 1, "prev": "0" * 64, "kind": "held",
         "model": "2-aaaaaaaa", "time_us": 1, "key": "0" * 16, "standing": standing}
    )  # fmt: skip
    found = status_of(received("releases", f"{TASK}/00000001", sign(made, KEY)))
    assert "2-aaaaaaaa offered to 0 of 0 devices, paused; 0 windows" in printed(found)
    text = " ".join(printed(found).split())
    assert f"manual: look first, signed by key {'ab' * 8}; `tidewheel models resume`" in text
    assert as_json(found)["release"]["paused"] == paused


def test_the_lag_is_told_by_partition_and_in_total() -> None:
    found = status_of()
    assert "workers are 7 messages behind (by partition 0: 3, 1: 4)\n" in printed(found)
    assert as_json(found)["lag"] == {
        "messages": 7,
        "retention_s": None,
        "partitions": [
            {
                "partition": 0,
                "end": 10,
                "committed": 7,
                "messages": 3,
                "deleted_unread": 0,
                "waits_s": None,
            },
            {
                "partition": 1,
                "end": 4,
                "committed": None,
                "messages": 4,
                "deleted_unread": 0,
                "waits_s": None,
            },
        ],
    }
    idle = status_of(lag=Lag([PartitionLag(0, 5, None, 5)]))
    assert "5 messages behind (by partition 0: 5); no worker has committed" in printed(idle)


def test_json_holds_all_of_it() -> None:
    text = io.StringIO()
    print_status(status_of(heard("d0", 1)), Console(file=text), as_json=True)
    assert set(json.loads(text.getvalue())) == {
        "task", "release", "devices", "without_agent", "windows", "unseen",
        "windows_metric", "agreement", "rounds", "last_outcome", "rates", "lag", "drift",
    }  # fmt: skip


def test_of_many_devices_the_table_has_the_most_urgent() -> None:
    fleet = [heard(f"d{n:03}", 1) for n in range(60)]
    found = status_of(*fleet, heard("d900", 1, error="no disk"), heard("d901", 900))
    text = printed(found)
    assert "no disk" in text
    assert re.search(r"d901 +│ silent", text)
    assert "12 more devices, 0 need attention: --all" in text
    assert text.count("│ d") == ROWS
    out = io.StringIO()
    print_status(found, Console(file=out, width=200), as_json=False, whole=True)
    assert out.getvalue().count("│ d") == 62


@pytest.mark.kafka
def test_it_is_read_from_a_broker(kafka: BrokerSettings) -> None:
    task = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka, topic_specs(task, 2))
    producer, report = Producer(kafka), window("d0", 0, events=120)
    producer.put(f"{task}.windows", report.key, report.value or b"")
    producer.put(f"{task}.events", b"d0", b"an event")
    producer.close()
    found = read_status(kafka, task)
    assert found.scored_per_s == 2.0
    assert [lag.committed for lag in found.lag.partitions] == [None, None]
    assert found.lag.messages == 1
