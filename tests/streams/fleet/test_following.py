"""Readers start from the last complete snapshot, whatever was cut off, and count what they skip."""

import time
import uuid
from contextlib import closing

import pytest

from streams.contract.documents import DeviceState
from streams.contract.errors import UsageError
from streams.contract.events.messages import Headers
from streams.contract.topics import FLEET, VIEW, WINDOWS, topic_name, topic_specs
from streams.fleet import following
from streams.fleet.following import (
    MOST,
    forget_device,
    newest_of,
    open_view,
    publish,
    read_view,
    starts,
)
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.messages import TASK, state, window


class Log:
    """`view` as a list, whose producer dies after `most` messages."""

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self.most = 9999

    def put(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers | None = None
    ) -> int:
        if len(self.messages) == self.most:
            raise InterruptedError
        offset = len(self.messages)
        self.messages.append(Received(topic, 0, offset, key, value, headers or []))
        return offset

    @property
    def newest(self) -> FleetView | None:
        """The last complete snapshot, after compaction left the last message of each key."""
        kept = {m.key: m for m in self.messages}.values()
        return newest_of(sorted(kept, key=lambda message: message.offset), TASK)


def grown(view: FleetView, devices: int) -> FleetView:
    for n in range(len(view.devices), devices):
        view.absorb(state(f"d{n}", active=uuid.uuid4().hex))  # nothing to compress
    return view


def test_a_snapshot_that_was_cut_off_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was killed while publishing, however often, and took over from what was left."""
    monkeypatch.setattr(following, "PART", 200)
    log, view = Log(), grown(FleetView(TASK), 20)
    assert log.newest is None
    publish(log, view, 1)
    assert len(log.messages) > 3
    for devices in (30, 40, 50):
        for after in (1, 2, 3):
            log.most = len(log.messages) + after
            with pytest.raises(InterruptedError):
                publish(log, grown(view, devices), 2)
            found = log.newest
            assert found is not None
            assert (len(found.devices), found.slot) == (devices - 10, view.slot)
            view = found
        log.most = 9999
        publish(log, grown(view, devices), 3)
        assert log.newest is not None
        assert len(log.newest.devices) == devices


def test_strange_messages_and_other_tasks_snapshots_are_passed_over() -> None:
    log = Log()
    publish(log, grown(FleetView(TASK), 2), 1)
    publish(log, FleetView("other"), 1)
    for headers in ([], [("id", b"a"), ("index", b"x"), ("count", b"1")], [("id", b"a")]):
        log.put("tiny.view", b"x", b"{", headers)
    log.put("tiny.view", b"y", b"{", [("id", b"b"), ("index", b"0"), ("count", b"1")])
    found = newest_of(log.messages, TASK)
    assert found is not None
    assert list(found.devices) == ["d0", "d1"]


def test_what_was_deleted_or_is_too_much_is_counted() -> None:
    view, many = FleetView(TASK), 2 * MOST
    view.offsets = {(FLEET, 0): 10, (WINDOWS, 0): 10, (WINDOWS, 1): 500}
    bounds = {(FLEET, 0): (0, many), (WINDOWS, 0): (40, 60), (WINDOWS, 1): (0, many)}
    first = many - MOST // 2
    assert starts(view, bounds) == {(FLEET, 0): 10, (WINDOWS, 0): 40, (WINDOWS, 1): first}
    assert view.unseen == {"deleted": 30, "many": first - 500}


@pytest.fixture(params=[pytest.param("kafka", marks=pytest.mark.kafka), "embedded"])
def broker(request: pytest.FixtureRequest) -> BrokerSettings:
    found: BrokerSettings = request.getfixturevalue(request.param)
    return found


def test_reading_starts_from_the_snapshot(broker: BrokerSettings) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(broker, [s for s in topic_specs(name, 2) if not s.name.endswith(VIEW)])
    assert read_view(broker, name, 1.0).devices == {}  # there is no snapshot
    ensure_topics(broker, topic_specs(name, 2))

    def send(producer: Producer, device: str, produced: int) -> None:
        found = DeviceState.decode(state(device, produced=produced, task=name).value)
        producer.put(topic_name(name, FLEET), device.encode(), found.encode())

    with closing(Producer(broker)) as producer:
        for n in range(30):
            send(producer, f"d{n % 3}", n)
        report = window("d0", 0)
        producer.put(topic_name(name, WINDOWS), report.key, report.value or b"")
        view = read_view(broker, name)
        assert (len(view.devices), view.windows) == (3, 1)
        publish(producer, view, 1)
        send(producer, "d3", 5)
        opened, reader = open_view(broker, name)
        with closing(reader):
            assert set(opened.devices) == {"d0", "d1", "d2"}
            rest = reader.read_to_end()
        assert [m.offset for m in rest if m.topic.endswith(FLEET)] == [30]
        whole = read_view(broker, name)
        assert (len(whole.devices), whole.windows) == (4, 1)
        whole.offsets[FLEET, 0] = 10**6  # a snapshot that is ahead of the topics is of others
        publish(producer, whole, 2)
        again = read_view(broker, name)
        assert (len(again.devices), again.offsets[FLEET, 0]) == (4, 31)


def test_a_device_leaves_the_fleet_for_all_readers(broker: BrokerSettings) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(broker, topic_specs(name, 1))
    now_us = time.time_ns() // 1000
    with closing(Producer(broker)) as producer:
        for device, at_us, phase, error in (
            ("here", now_us, "serving", None), ("gone", 1, "serving", None),
            ("ended", now_us, "stopped", None), ("failed", now_us, "stopped", "cannot join"),
        ):  # fmt: skip
            about = {"task": name, "time_us": at_us, "phase": phase, "error": error}
            found = DeviceState.decode(state(device, **about).value)
            producer.put(topic_name(name, FLEET), device.encode(), found.encode())
        publish(producer, read_view(broker, name), 1)
    with pytest.raises(UsageError, match=r"here was heard \d+ s ago: stop it first"):
        forget_device(broker, name, "here")
    for device in ("gone", "ended", "failed"):
        assert device in forget_device(broker, name, device)
        with pytest.raises(UsageError, match=f"has no device {device}"):
            forget_device(broker, name, device)
    assert set(read_view(broker, name).devices) == {"here"}
