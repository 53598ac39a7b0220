"""The worker's promises on a real Kafka, with real processes that are really killed."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.contract.accounting import IntervalSet
from streams.contract.events.messages import Drop
from streams.kafka.settings import BrokerSettings
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.query import server_account
from streams.worker.store.tables import SCORES
from tests.rig.processes.workers import (
    PARTITIONS,
    SECOND,
    Fleet,
    all_published,
    batch,
    check_topics,
    decoded_windows,
    device_on,
    fleet,
    json_events,
    labels,
    stop,
    until,
)
from tests.streams.worker.kills import until_killed

pytestmark = pytest.mark.kafka
LEFT, RIGHT = device_on(0), device_on(1)
ALL = list(range(PARTITIONS))


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, source="live") as made:
        yield made


def send_seconds(served: Fleet, device: str, first: int, count: int, **epoch: str) -> None:
    """One event a second of event time, ten to a message."""
    for at in range(first, first + count, 10):
        served.send(
            batch(device, at, [float(at + i) for i in range(10)], task=served.task, **epoch)
        )


def test_events_are_scored_once_and_published_and_sigterm_ends_it(served: Fleet) -> None:
    worker = served.start()
    served.ready("w0", ALL)
    send_seconds(served, LEFT, 0, 60)
    send_seconds(served, RIGHT, 0, 60)
    send_seconds(served, LEFT, 0, 20)  # a repetition
    send_seconds(served, LEFT, 0, 20, epoch="e2")
    served.send(Drop(RIGHT, "e1", 60, 69, "full"))
    served.wait_until_scored()
    until(lambda: server_account(served.store)[RIGHT, "e1"] == (60, 10), "the drop is stored")
    check_topics(served)
    for message in served.read("windows"):
        assert message.partition == (0 if message.key == LEFT.encode() else 1)
    assert stop(worker) == 0
    assert "sensor state" not in served.log("w0")  # Faust's, of a worker that is well


def send_json(served: Fleet, at: int) -> None:
    """Ten events under the key of a device, and as many without a key, of two other ones."""
    topic = f"{served.task.id}.events"
    events = json_events(batch("x", 0, [float(at + i) for i in range(10)]))
    served.producer.put(topic, RIGHT.encode(), json.dumps(events).encode(), [])
    keyless = [event | {"device": f"k{at}-{i % 2}"} for i, event in enumerate(events)]
    served.producer.put(topic, None, json.dumps(keyless).encode(), [])


@pytest.mark.parametrize(
    ("window", "form", "steps"),
    [("Tumbling(5)", "arrow", (1, 2, 3, 4, 5)), ("Sliding(15, 5)", "json", (2, 3, 5))],
)
def test_sigkill_at_each_step_in_turn_loses_and_doubles_nothing(
    kafka: BrokerSettings, tmp_path: Path, window: str, form: str, steps: tuple[int, ...]
) -> None:
    """Windows of other kinds are in tests/chaos, and in process in commit/test_committer."""
    kill_at_each_step(kafka, tmp_path, window, form, steps)


def kill_at_each_step(
    kafka: BrokerSettings, tmp_path: Path, window: str, form: str, steps: tuple[int, ...]
) -> None:
    with fleet(kafka, tmp_path, source="live", window=window) as served:
        served.options["scores"] = form
        sent = 0

        def send() -> None:
            nonlocal sent
            send_seconds(served, LEFT, sent, 10)
            send_seconds(served, RIGHT, sent, 10)
            send_json(served, sent)
            spans = [(sent + i, sent + i) for i in range(10)]
            served.send(labels(LEFT, sent, spans, task=served.task))
            known = [{"time_us": i, "label": 0} for i in range(10)]
            served.producer.put(f"{served.task.id}.labels", b"d0", json.dumps(known).encode())
            sent += 10

        for step in steps:
            until_killed(served, served.start(failpoint=f"worker-step-{step}:2"), send)
        send()
        served.send(labels(LEFT, 0, [(i, i) for i in range(10)], task=served.task))  # a repetition
        again = served.start()
        until(lambda: served.count() >= 4 * sent, f"{4 * sent} events are scored")
        until(lambda: all_published(served), "all revisions are published")
        check_topics(served)
        assert all((m.value or b"")[:1] == b"[" for m in served.read("scores")) == (form == "json")
        assert stop(again) == 0
        check_events(served, sent)
        found = sorted(served.labels())
        assert [each for each in found if each[1] == "l1"] == [(LEFT, "l1", n) for n in range(sent)]
        by_place = [each for each in found if each[1].startswith("kafka-")]
        assert len(by_place) == len(set(by_place)) == sent
        check_reports(served, window, sent)


def check_events(served: Fleet, sent: int) -> None:
    """Each event is stored once; those that Kafka numbers, by places that are kept no other way."""
    found = served.scored()
    assert len(found) == len(set(found)) == 4 * sent
    by_number = {(d, e, s) for (d, e), seqs in served.sent.items() for s in seqs}
    assert by_number == {each for each in found if each[1] == "e1"}
    epochs = {epoch for _, epoch, _ in found} - {"e1"}
    assert all(epoch.startswith("kafka-") for epoch in epochs)
    assert not any(epoch.startswith("kafka-0-") for epoch in epochs)  # the topic has an ID
    store = DeltaStore(served.store)
    for epoch in epochs:
        partition = int(epoch.rpartition("-")[2])
        seqs = sorted(seq for _, of, seq in found if of == epoch)
        half = IntervalSet((seq, seq) for seq in seqs[len(seqs) // 2 :])
        first = next(iter(half))[0]
        assert store.placed(SCORES, partition, epoch, first) == half
        assert not any(e == epoch for _, e in store.position(partition).taken)


def check_reports(served: Fleet, window: str, sent: int) -> None:
    """The reports of a device have each event once. The last one has the sums of its windows in the
    last span, none of those that do not slide."""
    reports = {
        name: copies[0]
        for name, copies in decoded_windows(served.read("windows")).items()
        if name[0] == LEFT and copies[0].events
    }
    assert sum(one.events for one in reports.values()) == sent
    starts = sorted({start for _, start, _ in reports})
    if window.startswith("Session"):
        ends = [*starts[1:], sent * SECOND]
        assert all(end - start <= 10 * SECOND for start, end in zip(starts, ends, strict=True))
    sums = sum(each.events for each in reports[max(reports)].sliding.values())
    in_span = [one for name, one in reports.items() if name[1] > starts[-1] - 15 * SECOND]
    assert sums == (sum(one.events for one in in_span) if window.startswith("Sliding") else 0)


def test_another_worker_takes_over_from_one_that_is_killed(served: Fleet) -> None:
    first = served.start("w0")
    served.ready("w0", ALL)
    served.start("w1")
    until(
        lambda: (
            any(f"worker w0: ready, partitions [{p}]" in served.log("w0") for p in ALL)
            and any(f"worker w1: ready, partitions [{p}]" in served.log("w1") for p in ALL)
        ),
        "each worker has one partition",
    )
    send_seconds(served, LEFT, 0, 30)
    send_seconds(served, RIGHT, 0, 30)
    until(lambda: served.count() > 20, "some events scored")
    assert first.poll() is None  # another one that joins ends none
    first.kill()
    send_seconds(served, LEFT, 30, 30)
    send_seconds(served, RIGHT, 30, 30)
    served.wait_until_scored()
    served.ready("w1", ALL)
    until(lambda: all_published(served), "all revisions are published")
    check_topics(served)


def ask(served: Fleet, path: str) -> str:
    """What the worker answers on its metrics port."""
    found = re.search(r"metrics on 127\.0\.0\.1:(\d+)", served.log("w0"))
    assert found is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_worker_tells_prometheus_what_it_did(served: Fleet) -> None:
    served.options["metrics_port"] = 0
    served.start()
    served.ready("w0", ALL)

    def get(path: str) -> str:
        return ask(served, path)

    def says(line: str) -> bool:
        return line in get("/metrics").splitlines()

    send_seconds(served, LEFT, 0, 40)
    served.send(batch(RIGHT, 0, [1, 2, time.time() + 10_000], task=served.task))
    served.producer.put(f"{served.task.id}.events", b"d0", b"garbage", [])
    until(lambda: says("tidewheel_rows_total 42.0"), "the rows")
    until(lambda: says("tidewheel_open_rows 0.0"), "no open rows")
    assert says('tidewheel_windows_total{late="no"} 9.0')
    assert says('tidewheel_dead_letters_total{reason="not-json"} 1.0')
    assert says('tidewheel_dead_letters_total{reason="from-the-future"} 1.0')
    assert says('tidewheel_dropped_rows_total{reason="from-the-future"} 1.0')
    for partition in ALL:
        until(lambda p=partition: says(f'tidewheel_lag_messages{{partition="{p}"}} 0.0'), "no lag")  # type: ignore[misc]
    assert 'tidewheel_teacher_info{version="1-' in get("/metrics")
    assert get("/ready") == get("/live") == "yes\n"
    assert server_account(served.store)[RIGHT, "e1"] == (2, 1)
