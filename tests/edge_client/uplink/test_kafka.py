"""The uplink on a real broker that refuses: an event that is too large alone is declared dropped;
where it refuses the device, events stay in the spool until it takes them. And on one behind a proxy
that swallows its answers. The last is a whole agent.
"""

import gc
import hashlib
import signal
import threading
import time
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)
from kafka.producer.transaction_manager import TransactionManager

from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.messages import of_events
from edge_client.uplink.task_queues import SPOOL, queue_folder
from edge_client.uplink.uplink import STALL_S, Uplink
from federation.registry.publisher import CHUNK, chunks
from streams.contract.decisions import Delivery
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Drop, task_layout
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.contract.topics import ARTIFACTS, EVENTS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.artifact_download import Download, fetch
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.agent_process import AgentProcess, first_model
from tests.rig.processes.polling import until
from tests.rig.servers.proxy import Proxy
from tests.rig.servers.secure_node import SecureNode
from tidewheel import Segment

pytestmark = pytest.mark.kafka

STEP_US = 500_000  # from one event to the next


class Device:
    """A spool and the uplink that empties it."""

    def __init__(
        self,
        task: Task,
        broker: BrokerSettings,
        folder: Path,
        kind: type[Producer] = Producer,
        stall_s: float = STALL_S,
    ) -> None:
        self.task = task
        self.spool = Spool(folder)
        self.producers: list[Producer] = []
        self._broker, self._kind = broker, kind
        self.uplink = Uplink(
            task.id, "d0", self.spool, of_events(task_layout(task), "d0", self.spool),
            self._connect, self._state, stall_s=stall_s,
        )  # fmt: skip

    def _connect(self) -> Producer:
        self.producers.append(self._kind(self._broker))
        return self.producers[-1]

    def _state(self) -> DeviceState:
        account = self.spool.account()
        return DeviceState(
            device="d0", task=self.task.name, time_us=0, epoch=self.spool.epoch, active="",
            produced=account.produced, delivered=account.delivered, pending=account.pending,
        )  # fmt: skip

    def produce(self, count: int) -> None:
        """Frames that do not compress, so that a message is as large as its segments."""
        writer, draw = SpoolWriter(self.task, self.spool), np.random.default_rng(count)
        for number in range(self.spool.next_seq, self.spool.next_seq + count):
            segment = draw.normal(0, 1, self.task.segment_shape).astype(np.float32)
            time_us = number * STEP_US
            writer.put(Event(time_us, "1-aaaaaaaa", np.zeros(3, np.float32), None, segment))
        writer.write(last=True)

    def delivered(self, count: int) -> None:
        until(lambda: self.spool.account().delivered == count, f"{count} are delivered")

    def received(self, broker: BrokerSettings) -> tuple[list[int], dict[int, str]]:
        """The seqs on the topic as they come, each as often as it is there, and those that are
        declared, with the reason."""
        reader = Reader(broker, [topic_name(self.task.id, EVENTS)], key="d0")
        events: list[int] = []
        drops: dict[int, str] = {}
        for message in reader.read_to_end():
            if message.key != b"d0":
                continue
            found = decode_event_message(self.task, message.key, message.value, message.headers)
            assert isinstance(found, EventBatch | Drop)
            seqs = range(found.first, found.last + 1)
            if isinstance(found, Drop):
                drops |= dict.fromkeys(seqs, found.reason)
            else:
                events += seqs
        reader.close()
        return events, drops

    def check(self, broker: BrokerSettings, count: int) -> None:
        events, drops = self.received(broker)
        assert (sorted(events), drops) == (list(range(count)), {})
        account = self.spool.account()
        assert (account.produced, account.delivered, account.pending) == (count, count, 0)
        assert account.dropped == {}


def admin_of(broker: BrokerSettings) -> KafkaAdminClient:
    return KafkaAdminClient(**broker.client_options())


def limit(broker: BrokerSettings, topic: str, size: int) -> None:
    admin = admin_of(broker)
    change = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})
    admin.alter_configs([change])
    admin.close()


def test_events_that_are_too_large_for_the_topic_are_declared_and_passed(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    """The topic's limit becomes smaller than an event, and is raised again."""
    name = f"huge-{tmp_path.name[-8:].strip('_').lower()}"
    task = replace(tiny, name=name, segment=Segment(samples=400, hop=200))
    ensure_topics(kafka, topic_specs(task.id, 1))
    device, topic = Device(task, kafka, tmp_path), topic_name(task.id, EVENTS)
    device.uplink.start()
    device.produce(3)
    device.delivered(3)
    limit(kafka, topic, 2_000)
    device.produce(40)  # of more than 3 kB each
    until(lambda: device.spool.account().pending == 0, "they are passed")
    account = device.spool.account()
    assert (account.delivered, account.dropped) == (3, {"too-large": 40})
    limit(kafka, topic, 1_000_000)
    device.produce(5)
    device.delivered(8)
    device.uplink.stop(10.0)
    assert device.spool.audit() == device.spool.account()
    events, drops = device.received(kafka)
    assert events == [0, 1, 2, 43, 44, 45, 46, 47]
    assert drops == dict.fromkeys(range(3, 43), "too-large")


def test_events_that_an_acl_refuses_meanwhile_stay_until_it_allows_them(
    secure_node: SecureNode, tmp_path: Path
) -> None:
    task = replace(tiny, name=f"denied-{tmp_path.name[-8:].strip('_').lower()}")
    plain = secure_node.settings("plain")
    ensure_topics(plain, topic_specs(task.id, 1))
    device = Device(task, secure_node.settings("plain-password"), tmp_path)
    device.uplink.start()
    device.produce(3)
    device.delivered(3)

    topic, admin = topic_name(task.id, EVENTS), admin_of(plain)
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    denied = (ACLOperation.WRITE, ACLPermissionType.DENY, pattern)
    admin.create_acls([ACL("User:plain", "*", *denied)])
    device.produce(10)
    until(lambda: device.uplink.error, "the device says so")
    account = device.spool.account()
    assert (account.delivered, account.pending, account.dropped) == (3, 10, {})

    admin.delete_acls([ACLFilter("User:plain", "*", *denied)])
    admin.close()
    device.delivered(13)
    device.uplink.stop(10.0)
    device.check(plain, 13)


def skip_numbers(producer: Producer, topic: str) -> None:
    """Let the next batch of this producer have a number after one that the broker never gets."""
    manager, place = manager_of(producer), TopicPartition(topic, 0)
    manager.set_sequence_number(place, manager.sequence_number(place) + 5)


def manager_of(producer: Producer) -> TransactionManager:
    """What numbers the batches of the library's producer; it has an id from the broker."""
    manager = producer._producer._transaction_manager
    until(manager.has_producer_id, "the producer has an id")
    return manager


def test_of_many_messages_behind_a_gap_none_comes_before_those_of_the_gap(
    kafka: BrokerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The library would send those that it still has under another id, before the uplink sends all
    again."""
    task = replace(tiny, name=f"gap-{uuid.uuid4().hex[:8]}")
    ensure_topics(kafka, topic_specs(task.id, 1))
    device = Device(task, kafka, tmp_path)
    device.uplink.start()
    device.produce(3)
    device.delivered(3)
    skip_numbers(device.producers[0], topic_name(task.id, EVENTS))
    device.produce(3000)
    device.delivered(3003)
    device.uplink.stop(10.0)
    assert device.received(kafka) == (list(range(3003)), {})
    assert len(device.producers) == 2
    assert f"Kafka at {kafka.bootstrap} refuses: OutOfOrderSequenceNumberError" in caplog.text
    assert "no Kafka broker answers" not in caplog.text
    assert device.spool.audit() == device.spool.account()


def test_a_producer_that_is_closed_in_an_outage_leaves_no_thread_and_sends_nothing_later(
    secure_node: SecureNode,
) -> None:
    task, plain = replace(tiny, name="outage"), secure_node.settings("plain")
    ensure_topics(plain, topic_specs(task.id, 1))
    through = secure_node.settings("proxied", bootstrap=f"127.0.0.1:{secure_node.proxy_port}")
    before, given_up = set(threading.enumerate()), list[Exception | None]()
    port, door = secure_node.proxy_port, secure_node.ports["proxied"]
    topic = topic_name(task.id, EVENTS)
    with closing(Proxy(port, door)):
        producer = Producer(through)
        producer.put(topic, b"d0", b"first")
    producer.send(topic, b"d0", b"second", [], given_up.append)
    with pytest.raises(BrokerUnavailable):
        producer.close(0.5)
    ours = set(threading.enumerate()) - before
    with closing(Proxy(port, door)):  # the broker is there again
        until(lambda: len(given_up) == 1, "the message is given up")
        assert given_up[0] is not None
        until(
            lambda: not any("producer" in each.name for each in ours if each.is_alive()),
            "the library's thread ends",
        )
    with closing(Reader(plain, [topic])) as reader:
        assert [message.value for message in reader.read_to_end()] == [b"first"]
    del producer
    gc.collect()  # a finalizer that fails is an error of the test


def test_on_a_slow_line_an_event_waits_for_less_than_two_chunks_of_a_version_that_comes(
    secure_node: SecureNode, tmp_path: Path
) -> None:
    """512 kbit/s for both directions together. That no chunk is asked for while events wait is
    tested with the download."""
    task, plain = replace(tiny, name="narrow"), secure_node.settings("plain")
    ensure_topics(plain, topic_specs(task.id, 1))
    data, rate = np.random.default_rng(0).bytes(3 * CHUNK), 64_000
    through = secure_node.settings("proxied", bootstrap=f"127.0.0.1:{secure_node.proxy_port}")
    topic, sha = topic_name(task.id, ARTIFACTS), hashlib.sha256(data).hexdigest()
    with closing(Producer(plain)) as producer:
        offsets = [producer.put(topic, sha.encode(), *part) for part in chunks(data)]
    delivery = Delivery(
        model="2-aaaaaaaa", sha256=sha, size=len(data), chunks=len(offsets), offset=offsets[0]
    )
    device, came = Device(task, through, tmp_path), list[tuple[bytes, float]]()

    def fetched() -> None:
        began = time.monotonic()
        late = lambda: device.uplink.is_late  # noqa: E731
        found = fetch(through, task.id, Download(delivery), lambda: False, waits=late)
        came.append((found, time.monotonic() - began))

    with closing(Proxy(secure_node.proxy_port, secure_node.ports["proxied"], rate)):
        device.uplink.start()
        device.produce(1)
        device.delivered(1)
        thread = threading.Thread(target=fetched)
        thread.start()
        delays = []
        while thread.is_alive():
            asked = time.monotonic()
            device.produce(1)
            until(lambda: device.spool.account().pending == 0, "it is delivered", 30)
            delays.append(time.monotonic() - asked)
            thread.join(0.5)
        device.uplink.stop(5.0)
    ((found, took_s),) = came
    assert found == data
    assert took_s >= len(data) / rate
    assert max(delays) < 2 * CHUNK / rate, delays


class Impatient(Producer):
    """Gives up a batch after two seconds. If the batch had been sent, an idempotent producer of the
    library's sends nothing more, and says nothing. Ours never give up."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        **Producer.OPTIONS, "request_timeout_ms": 700, "delivery_timeout_ms": 2000,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_events_whose_answers_are_lost_come_again_in_order_and_are_settled_once(
    secure_node: SecureNode, tmp_path: Path
) -> None:
    task, plain = replace(tiny, name="unheard"), secure_node.settings("plain")
    ensure_topics(plain, topic_specs(task.id, 1))
    through = secure_node.settings("proxied", bootstrap=f"127.0.0.1:{secure_node.proxy_port}")
    device = Device(task, through, tmp_path, Impatient, stall_s=1.0)
    with closing(Proxy(secure_node.proxy_port, secure_node.ports["proxied"])) as proxy:
        device.uplink.start()
        device.produce(5)
        device.delivered(5)
        proxy.swallowing = True
        device.produce(20)
        until(lambda: len(device.producers) >= 3, "producers that hear nothing are replaced")
        assert device.spool.account().delivered == 5
        device.produce(20)
        proxy.swallowing = False
        device.delivered(45)
        device.uplink.stop(5.0)
    events, drops = device.received(plain)
    assert len(events) > 45  # what was sent and not heard of came twice
    assert (list(dict.fromkeys(events)), drops) == (list(range(45)), {})
    account = device.spool.account()
    assert (account.produced, account.delivered, account.pending) == (45, 45, 0)


def test_a_device_with_a_wrong_password_says_so_once_and_goes_on_answering(
    secure_node: SecureNode, tmp_path: Path
) -> None:
    task = replace(tiny, name="refused")
    ensure_topics(secure_node.settings("plain"), topic_specs(task.id, 1))
    (tmp_path / "task.py").write_text(
        "from dataclasses import replace\n"
        "from tests.rig.made_up.tiny_task import task as tiny\n"
        "task = replace(tiny, name='refused')\n"
    )
    folder = queue_folder(tmp_path / "devices" / "d0", SPOOL, task)

    def started(drain: str, **password: str) -> AgentProcess:
        broker = secure_node.settings("scram-password", **password)
        fields = broker.fields()
        return AgentProcess(
            tmp_path, "--model", first_model(tmp_path, task), "--speed", "50", "--drain", drain,
            reference=f"{tmp_path}/task.py:task", kafka=broker.bootstrap,
            environ={
                f"TIDEWHEEL_KAFKA_{name.upper()}": str(of)
                for name, of in fields.items()
                if name != "bootstrap" and of is not None
            },
        )  # fmt: skip

    def written() -> int:
        return sum(path.stat().st_size for path in folder.glob("*.seg"))

    with closing(started("0", password="wrong")) as refused:
        until(lambda: "TIDEWHEEL_KAFKA_PASSWORD" in refused.log, "it says what to set")
        size = written()
        until(lambda: written() > size + 20_000, "it answers")
        refused.end(signal.SIGTERM)
        lines = [line for line in refused.log.splitlines() if "TIDEWHEEL_KAFKA_PASSWORD" in line]
        assert len(lines) <= 2, lines  # the uplink's, and the downlink's where it says so too
    kept = Spool(folder).account()
    assert kept.pending == kept.produced > 20
    topic, plain = topic_name(task.id, EVENTS), secure_node.settings("plain")
    with closing(started("30")) as taken, closing(Reader(plain, [topic])) as reader:
        until(lambda: reader.poll(0.2), "the right password delivers")
        taken.end(signal.SIGTERM)
    assert Spool(folder).account().pending == 0
