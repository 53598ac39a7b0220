"""Readers start from the last complete snapshot, whatever was cut off, and count what they skip."""

import uuid
from contextlib import closing

import pytest

from streams.contract.documents import DeviceState
from streams.contract.events.messages import Headers
from streams.contract.topics import FLEET, VIEW, WINDOWS, topic_name, topic_specs
from streams.fleet import following
from streams.fleet.following import newest_of, open_view, publish, read_view, starts
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.messages import state, window

TASK = "tiny"


class Log:
    """`view` as a list, whose producer dies after `most` messages."""

    def __init__(self, most: int = 999) -> None:
        self.messages: list[Received] = []
        self.most = most

    def put(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers | None = None
    ) -> int:
        if len(self.messages) == self.most:
            raise InterruptedError
        offset = len(self.messages)
        self.messages.append(Received(topic, 0, offset, key, value, headers or []))
        return offset


def view_of(devices: int) -> FleetView:
    view = FleetView(TASK)
    for n in range(devices):
        view.absorb(state(f"d{n}", active=uuid.uuid4().hex))  # nothing to compress
    return view


def test_a_snapshot_that_was_cut_off_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "PART", 200)
    log = Log()
    assert newest_of(log.messages, TASK) is None
    publish(log, view_of(20), 1)
    first = len(log.messages)
    assert first > 3
    for after in range(1, 4):
        log.most = first + after
        with pytest.raises(InterruptedError):
            publish(log, view_of(30), 2)
        found = newest_of(log.messages, TASK)
        assert found is not None
        assert len(found.devices) == 20
        del log.messages[first:]
    log.most = 999
    publish(log, view_of(30), 2)
    assert len((newest_of(log.messages, TASK) or FleetView(TASK)).devices) == 30


def compacted(messages: list[Received]) -> list[Received]:
    """As Kafka leaves them: of each key the last."""
    return sorted({m.key: m for m in messages}.values(), key=lambda message: message.offset)


def test_compaction_leaves_the_last_complete_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was killed while publishing, however often, and took over from what was left."""
    monkeypatch.setattr(following, "PART", 200)
    log, view = Log(), view_of(20)
    publish(log, view, 1)
    for devices in (30, 25, 40):
        for _ in range(3):
            log.most = len(log.messages) + 2
            with pytest.raises(InterruptedError):
                publish(log, view, 2)
            found = newest_of(compacted(log.messages), TASK)
            assert found is not None
            assert (len(found.devices), found.slot) == (len(view.devices), view.slot)
            view = found
        log.most = 9999
        before = len(view.devices)
        for n in range(before, devices):
            view.absorb(state(f"d{n}", active=uuid.uuid4().hex))
        publish(log, view, 3)
        found = newest_of(compacted(log.messages), TASK)
        assert found is not None
        assert len(found.devices) == max(before, devices)
        view = found


def test_strange_messages_and_other_tasks_snapshots_are_passed_over() -> None:
    log = Log()
    publish(log, view_of(2), 1)
    other = FleetView("other")
    other.absorb(state("x"))
    publish(log, other, 1)
    for headers in ([], [("id", b"a"), ("index", b"x"), ("count", b"1")], [("id", b"a")]):
        log.put("tiny.view", b"0", b"{", headers)
    log.put("tiny.view", b"0", b"{", [("id", b"b"), ("index", b"0"), ("count", b"1")])
    found = newest_of(log.messages, TASK)
    assert found is not None
    assert list(found.devices) == ["d0", "d1"]


def test_what_was_deleted_or_is_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST", 100)
    view = FleetView(TASK)
    view.offsets = {(FLEET, 0): 10, (WINDOWS, 0): 10, (WINDOWS, 1): 500}
    bounds = {(FLEET, 0): (0, 900), (WINDOWS, 0): (40, 60), (WINDOWS, 1): (0, 900)}
    assert starts(view, bounds) == {(FLEET, 0): 10, (WINDOWS, 0): 40, (WINDOWS, 1): 850}
    assert view.unseen == 30 + 350


@pytest.fixture(params=[pytest.param("kafka", marks=pytest.mark.kafka), "embedded"])
def task(request: pytest.FixtureRequest) -> tuple[BrokerSettings, str]:
    broker: BrokerSettings = request.getfixturevalue(request.param)
    name = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(broker, topic_specs(name, 2))
    return broker, name


def sent(producer: Producer, task: str, device: str, produced: int) -> None:
    found = DeviceState.decode(state(device, produced=produced).value)
    made = found.model_copy(update={"task": task})
    producer.put(topic_name(task, FLEET), device.encode(), made.encode())


def test_reading_starts_from_the_snapshot(task: tuple[BrokerSettings, str]) -> None:
    broker, name = task
    with closing(Producer(broker)) as producer:
        for n in range(30):
            sent(producer, name, f"d{n % 3}", n)
        report = window("d0", 0)
        producer.put(topic_name(name, WINDOWS), report.key, report.value or b"")
        view = read_view(broker, name)
        assert (len(view.devices), view.windows) == (3, 1)
        publish(producer, view, 1)
        sent(producer, name, "d3", 5)
        opened, reader = open_view(broker, name)
        with closing(reader):
            assert set(opened.devices) == {"d0", "d1", "d2"}
            rest = reader.read_to_end()
        assert [m.offset for m in rest if m.topic.endswith(FLEET)] == [30]
        whole = read_view(broker, name)
        assert (len(whole.devices), whole.windows) == (4, 1)
        # a snapshot that is ahead of the topics is of others
        whole.offsets[FLEET, 0] = 10**6
        publish(producer, whole, 2)
        again = read_view(broker, name)
        assert (len(again.devices), again.offsets[FLEET, 0]) == (4, 31)


@pytest.mark.kafka
def test_a_cluster_without_the_topic_has_no_snapshot(kafka: BrokerSettings) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka, [s for s in topic_specs(name, 1) if not s.name.endswith(VIEW)])
    assert read_view(kafka, name, 1.0).devices == {}
