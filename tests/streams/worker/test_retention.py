"""What retention deletes before a worker has read it is declared: real Kafka, real processes."""

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition

from streams.contract.accounting import IntervalSet
from streams.contract.documents import DeviceState
from streams.contract.topics import topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.hole_keeper import LOST, hole_name
from tests.rig.asked import asked
from tests.rig.processes.workers import Fleet, batch, device_on, fleet, json_events, stop, until

pytestmark = pytest.mark.kafka
DEVICE = device_on(0, 1)
DECLARED = (
    r"(\d+) events of (\d+) devices are newly declared as lost-by-retention; events that their "
    r"producers did not number \(epoch, seq\) cannot be counted"
)


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, partitions=1, source="live", idle_close_s=0.5) as made:
        yield made


def send(served: Fleet, device: str, first: int, count: int, epoch: str = "e1") -> None:
    """One event a second of event time, ten to a message."""
    for at in range(first, first + count, 10):
        times = [float(at + i) for i in range(10)]
        served.send(batch(device, at, times, task=served.task, epoch=epoch))


def delete_all(served: Fleet) -> None:
    """Delete every message that is on `events` now, as retention does."""
    topic = topic_name(served.task.id, "events")
    admin = KafkaAdminClient(**served.broker.client_options())
    try:
        admin.delete_records({TopicPartition(topic, 0): -1})  # to the end
    finally:
        admin.close()


def send_unnumbered(served: Fleet, device: str) -> None:
    """A JSON message of three events that are counted by their place in Kafka."""
    value = json.dumps(json_events(batch(device, 0, [1.0, 2.0, 3.0], task=served.task)))
    topic = topic_name(served.task.id, "events")
    served.producer.put(topic, device.encode(), value.encode())


def say_delivered(served: Fleet, device: str, produced: int, pending: int = 0) -> None:
    state = DeviceState(
        device=device, task=served.task.name, time_us=1, epoch="e1", active="1-aaaaaaaa",
        produced=produced, delivered=produced - pending, pending=pending,
    )  # fmt: skip
    topic = topic_name(served.task.id, "fleet")
    served.producer.put(topic, device.encode(), state.encode())


def lost(served: Fleet) -> dict[str, list[tuple[int, int]]]:
    """The declared ranges by device."""
    rows = asked(served.store, "select device, first, last, reason from drops order by first")
    assert {reason for *_, reason in rows} <= {LOST}
    found: dict[str, list[tuple[int, int]]] = {}
    for device, first, last, _ in rows:
        found.setdefault(device, []).append((first, last))
    return found


def check_closed(served: Fleet) -> None:
    """Each event that was sent is scored, or declared, and not both."""
    scored, declared = served.scored(), lost(served)
    assert len(scored) == len(set(scored))
    for (device, epoch), seqs in served.sent.items():
        there = {seq for d, e, seq in scored if (d, e) == (device, epoch)}
        gone = {seq for low, high in declared.get(device, []) for seq in range(low, high + 1)}
        assert not there & gone
        assert there | gone == seqs
        assert sum(high - low + 1 for low, high in declared.get(device, [])) == len(gone)


def is_closed(served: Fleet) -> bool:
    declared = sum(high - low + 1 for spans in lost(served).values() for low, high in spans)
    return served.count() + declared == sum(map(len, served.sent.values()))


def test_a_worker_that_was_away_declares_what_is_gone(served: Fleet) -> None:
    """Also when it is killed at the end of each step in turn."""
    worker = served.start()
    served.ready("w0", [0])
    send(served, DEVICE, 0, 30)
    until(lambda: served.count() >= 20, "some events are scored")
    assert stop(worker) == 0
    send(served, DEVICE, 30, 30)
    send(served, "silent-since", 0, 20)  # nothing behind the hole tells of it
    send_unnumbered(served, "unnumbered")
    say_delivered(served, "silent-since", 20)
    say_delivered(served, DEVICE, 70, pending=10)
    delete_all(served)
    send(served, DEVICE, 60, 20)
    for step in range(1, 5):
        killed = served.start(failpoint=f"hole-step-{step}:1")
        until(lambda killed=killed: killed.poll() is not None, f"it dies at step {step}")  # type: ignore[misc]
        assert killed.returncode == -signal.SIGKILL
    served.start()
    until(lambda: is_closed(served), "the account closes")
    check_closed(served)
    assert lost(served)["silent-since"] == [(0, 19)]
    assert "unnumbered" not in lost(served)
    assert IntervalSet(lost(served)[DEVICE]).within(30, 59) == [(30, 59)]
    until(lambda: not (Path(served.store) / hole_name(0)).exists(), "the hole is closed")
    assert "retention has deleted the messages" in served.log("w0")
    assert re.search(rf"deleted up to \d messages \(\d to 8\): {DECLARED}", served.log("w0"))


def test_a_worker_that_is_too_slow_declares_what_it_missed(served: Fleet) -> None:
    worker = served.start()
    served.ready("w0", [0])
    send(served, DEVICE, 0, 30)
    until(lambda: served.count() >= 20, "some events are scored")
    worker.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    send(served, DEVICE, 30, 50)
    delete_all(served)
    send(served, DEVICE, 80, 20)
    until(lambda: time.monotonic() > stopped_s + 2, "a fetch that was under way has ended")
    worker.send_signal(signal.SIGCONT)
    until(lambda: is_closed(served), "the account closes")
    check_closed(served)
    until(lambda: re.search(DECLARED, served.log("w0")), "it says what it has declared")
    ((events, devices),) = re.findall(DECLARED, served.log("w0"))
    ((first, last),) = lost(served)[DEVICE]
    assert (int(events), int(devices)) == (last - first + 1, 1)
    assert worker.poll() is None


@pytest.mark.parametrize("seen", [True, False])
def test_a_topic_that_is_made_again_is_read_from_its_start(served: Fleet, seen: bool) -> None:
    """By a worker that was there, which ends for it, and by one that was away; seen: also without
    the topic."""
    topic = topic_name(served.task.id, "events")
    admin = KafkaAdminClient(**served.broker.client_options())

    def make_again() -> None:
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics(), "the topic is gone")
        if seen:
            until(lambda: worker.poll() is not None, "the worker ends")
        ensure_topics(served.broker, topic_specs(served.task.id, 1))

    try:
        worker = served.start()
        served.ready("w0", [0])
        send(served, DEVICE, 0, 60)
        until(lambda: served.count() >= 50, "some events are scored")
        if not seen:
            worker.send_signal(signal.SIGSTOP)
        make_again()
        send(served, DEVICE, 60, 30)
        worker.send_signal(signal.SIGCONT)
        until(lambda: worker.poll() is not None, "the worker ends")
        why = (
            f"the topic {topic} is gone: a restart makes it"
            if seen
            else "the topic was deleted and made again"
        )
        assert why in served.log("w0")
        worker = served.start()
        until(lambda: served.count() >= 80, "what came since is scored")
        assert stop(worker) == 0
        scored = served.scored()
        assert len(scored) == len(set(scored))
        make_again()
    finally:
        admin.close()
    send(served, DEVICE, 90, 20)
    served.start()
    until(lambda: served.count() >= len(scored) + 20, "what came while it was away is scored")
