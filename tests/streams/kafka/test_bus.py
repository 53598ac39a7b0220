"""Topics that exist are compared with what a task asks for, on Kafka and the embedded broker."""

import dataclasses
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Producer as OtherProducer

from streams.contract import topics
from streams.contract.decisions import Delivery
from streams.contract.errors import MalformedRecord, TopicMissing, UsageError
from streams.contract.events.records import decode_event_message
from streams.contract.topics import TopicSpec, topic_specs
from streams.fleet.following import newest_of
from streams.kafka.admin import ensure_topics
from streams.kafka.artifact_download import Download
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.flower import wait_for


def spec(**other: object) -> TopicSpec:
    return dataclasses.replace(
        TopicSpec(f"t-{uuid.uuid4().hex[:8]}", 2, "delete", 60_000), **other  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(params=[pytest.param("kafka", marks=pytest.mark.kafka), "embedded"])
def broker(request: pytest.FixtureRequest) -> BrokerSettings:
    found: BrokerSettings = request.getfixturevalue(request.param)
    return found


def test_topics_that_are_as_asked_are_left_alone(broker: BrokerSettings) -> None:
    specs = topic_specs(f"t-{uuid.uuid4().hex[:8]}")
    ensure_topics(broker, specs[:3])
    ensure_topics(broker, specs)
    ensure_topics(broker, specs)


def test_another_number_of_partitions_is_named(broker: BrokerSettings) -> None:
    there = spec()
    ensure_topics(broker, [there])
    with pytest.raises(UsageError, match=rf"{there.name} .* has 2 partitions.*--partitions 2"):
        ensure_topics(broker, [dataclasses.replace(there, partitions=3)])


def listed(broker: BrokerSettings, topic: str) -> None:
    """Wait until the broker has it: a busy one lists a topic later than it has created it."""
    Reader(broker, [topic], timeout_s=30.0).close()


@pytest.mark.parametrize(
    ("other", "has", "wants"),
    [
        ({"retention_ms": 1000}, "retention.ms=1000", "retention.ms=60000"),
        ({"cleanup": "compact"}, "cleanup.policy=compact", "cleanup.policy=delete"),
        (
            {"cleanup": "compact,delete", "retention_ms": -1},
            "cleanup.policy=compact,delete and retention.ms=-1",
            "cleanup.policy=delete and retention.ms=60000",
        ),
    ],
)
def test_other_settings_of_a_topic_are_named_with_what_to_do(
    broker: BrokerSettings, other: dict[str, object], has: str, wants: str
) -> None:
    sound, asked = spec(), spec()
    ensure_topics(broker, [sound, dataclasses.replace(asked, **other)])  # type: ignore[arg-type]
    listed(broker, asked.name)
    with pytest.raises(UsageError) as caught:
        ensure_topics(broker, [sound, asked])
    command = (
        f"kafka-configs.sh --bootstrap-server {broker.bootstrap} --alter --topic {asked.name} "
        f"--add-config {wants.replace(' and ', ',')}"
    )
    assert str(caught.value) == (
        f"topic {asked.name} on {broker.bootstrap} has {has}, this task needs {wants}: "
        f"{command}, or use another cluster"
    )


@pytest.mark.kafka
def test_a_tidy_topic_is_compacted_while_it_is_written(
    kafka: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default Kafka would wait for a day or a gigabyte; here the ten minutes are two seconds."""
    monkeypatch.setattr(topics, "TIDY_MS", 2000)
    there = spec(partitions=1, cleanup="compact", retention_ms=-1, tidy=True)
    ensure_topics(kafka, [there])
    sent = 0

    def compacted() -> bool:
        nonlocal sent
        for key in (b"d0", b"d1"):
            producer.put(there.name, key, b"state")
            sent += 1
        with closing(Reader(kafka, [there.name])) as reader:
            return len(reader.read_to_end()) < sent / 2

    with closing(Producer(kafka)) as producer:
        wait_for("old states are gone", compacted, 120)


@pytest.mark.kafka
def test_a_header_whose_value_is_null_is_an_empty_one(kafka: BrokerSettings) -> None:
    """kafka-python does not send such headers; Kafka and other clients do."""
    there = spec(partitions=1)
    ensure_topics(kafka, [there])
    producer = OtherProducer({"bootstrap.servers": kafka.bootstrap})
    names = ("schema", "device", "index", "chunks", "id", "count")
    headers: list[tuple[str, Any]] = [(name, None) for name in names]
    producer.produce(there.name, b"value", b"d0", headers=headers)
    assert producer.flush(30) == 0
    with closing(Reader(kafka, [there.name])) as reader:
        [message] = reader.read_to_end()
    assert dict(message.headers) == dict.fromkeys(names, b"")
    with pytest.raises(MalformedRecord):
        decode_event_message(tiny, message.key, message.value, message.headers)
    with pytest.raises(MalformedRecord):
        decode_event_message(tiny, message.key, message.value, headers)
    assert newest_of([message], "tiny") is None
    asked = Delivery(model="1-aaaaaaaa", sha256="0" * 64, size=9, chunks=1, offset=0)
    download = Download(asked)
    download.take(message)
    assert download.missing == 1


@pytest.mark.kafka
def test_a_cluster_too_small_for_the_copies_is_named(kafka: BrokerSettings) -> None:
    many = kafka.model_copy(update={"replication": 3})
    with pytest.raises(UsageError, match="has 1 brokers, too few for 3 copies of a topic"):
        ensure_topics(many, topic_specs(f"t-{uuid.uuid4().hex[:8]}"))
    more = kafka.model_copy(update={"min_insync": 2})
    with pytest.raises(UsageError, match="MIN_INSYNC=2 is more than the 1 copies"):
        ensure_topics(more, topic_specs(f"t-{uuid.uuid4().hex[:8]}"))


@pytest.mark.kafka
def test_a_message_waits_for_a_topic_that_is_not_known_yet(
    kafka: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy broker tells of a new topic late: later than an uplink may be held up."""
    monkeypatch.setitem(Producer.OPTIONS, "max_block_ms", 200)
    topic = f"late-{uuid.uuid4().hex[:8]}"
    with closing(Producer(kafka)) as producer:
        with pytest.raises(TopicMissing, match=f"topic {topic} is not on {kafka.bootstrap}: start"):
            producer.put(topic, b"k", b"v", timeout_s=1.0)
        with pytest.raises(TopicMissing, match=f"topic {topic} is not on"):
            producer.send(topic, b"k", b"v", [], lambda _error: None)
        with ThreadPoolExecutor() as pool:
            sent = pool.submit(producer.put, topic, b"k", b"v", None, 60.0)
            with pytest.raises(TimeoutError):
                sent.result(timeout=1.0)  # refused five times by now, and not given up
            ensure_topics(kafka, [TopicSpec(topic, 1, "delete", -1)])
            assert sent.result(timeout=60.0) == 0
