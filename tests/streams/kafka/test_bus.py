"""Topics that exist are compared with what a task asks for, on Kafka and the embedded broker."""

import dataclasses
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher

from streams.contract.errors import BrokerUnavailable, TopicMissing, UsageError
from streams.contract.topics import (
    ARTIFACTS,
    DAY_MS,
    EVENTS,
    LABELS,
    SCORES,
    TopicSpec,
    topic_name,
    topic_specs,
)
from streams.kafka.admin import ensure_topics
from streams.kafka.patches import EMPTY_S
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until

WAITED_S = 1.5


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


def test_topics_that_another_creates_at_the_same_time_keep_no_others_from_being_created(
    broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec() for _ in range(3)]
    ensure_topics(broker, specs[:2])
    with monkeypatch.context() as patch:
        patch.setattr(KafkaAdminClient, "list_topics", lambda _self: [])
        ensure_topics(broker, specs)
    listed(broker, specs[2].name)


@pytest.mark.kafka
def test_a_topic_that_a_broker_refuses_to_create_is_named(kafka: BrokerSettings) -> None:
    with pytest.raises(BrokerUnavailable, match=r"refuses: InvalidTopicError: .*in vain"):
        ensure_topics(kafka, [spec(), spec(name="in vain")])


def test_another_number_of_partitions_is_named(broker: BrokerSettings) -> None:
    there = spec()
    ensure_topics(broker, [there])
    with pytest.raises(UsageError, match=rf"{there.name} .* has 2 partitions.*--partitions 2"):
        ensure_topics(broker, [dataclasses.replace(there, partitions=3)])


def listed(broker: BrokerSettings, topic: str) -> None:
    """Wait until the broker has it: a busy one lists a topic later than it has created it."""
    Reader(broker, [topic], timeout_s=30.0).close()


@pytest.mark.parametrize(
    ("kept_ms", "other", "has", "wants"),
    [
        (-1, {"retention_ms": 1000}, "retention.ms=1000", "retention.ms=-1"),
        (60_000, {"cleanup": "compact"}, "cleanup.policy=compact", "cleanup.policy=delete"),
        (
            60_000,
            {"cleanup": "compact,delete", "retention_ms": -1},
            "cleanup.policy=compact,delete",
            "cleanup.policy=delete",
        ),
        (
            -1,
            {"cleanup": "compact,delete", "retention_ms": 60_000},
            "cleanup.policy=compact,delete and retention.ms=60000",
            "cleanup.policy=delete and retention.ms=-1",
        ),
    ],
)
def test_other_settings_of_a_topic_are_named_with_what_to_do(
    broker: BrokerSettings, kept_ms: int, other: dict[str, object], has: str, wants: str
) -> None:
    sound, asked = spec(), spec(retention_ms=kept_ms)
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


def alter(broker: BrokerSettings, topic: str, **changed: int | str) -> None:
    """Set retentions of a topic (`ms`, `bytes`) or others of its settings as kafka-configs.sh does,
    and wait until the broker reports them."""
    listed(broker, topic)
    short = {"ms": "retention.ms", "bytes": "retention.bytes"}
    values = {short.get(name, name): str(value) for name, value in changed.items()}
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, values)
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, list(values))

    with closing(KafkaAdminClient(**broker.client_options())) as admin:

        def reported() -> dict[str, str]:
            found = admin.describe_configs([asked], config_filter="all")["topic"][topic]
            return {name: config["value"] for name, config in found.items()}

        admin.alter_configs([resource])
        until(lambda: reported() == values, "the broker reports what was set")


@pytest.mark.kafka
def test_history_is_kept_from_its_arrival_on(kafka: BrokerSettings) -> None:
    """Kafka deletes by the timestamp that a message has: here its producer says 1970."""
    task, begun_ms = f"t-{uuid.uuid4().hex[:8]}", time.time() * 1000
    names = [topic_name(task, topic) for topic in (EVENTS, LABELS)]
    ensure_topics(kafka, topic_specs(task))
    with closing(KafkaProducer(**kafka.client_options())) as producer:
        for name in names:
            producer.send(name, b"{}", timestamp_ms=1_000).get(30)
    with closing(Reader(kafka, names)) as reader:
        times = [message.time_ms for message in reader.read_to_end()]
    assert len(times) == 2
    assert min(times) > begun_ms - 1000


@pytest.mark.kafka
@pytest.mark.parametrize("kept_ms", [29 * DAY_MS, -1])
def test_a_longer_retention_is_the_operators_and_nothing_is_said(
    kafka: BrokerSettings, caplog: pytest.LogCaptureFixture, kept_ms: int
) -> None:
    specs = topic_specs(f"t-{uuid.uuid4().hex[:8]}")
    ensure_topics(kafka, specs)
    for each in specs:
        if each.retention_ms > 0:
            alter(kafka, each.name, ms=kept_ms)
    ensure_topics(kafka, specs)
    assert not caplog.records


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("topic", "changed", "has", "usual"),
    [
        (EVENTS, {"ms": 3_600_000}, "retention.ms=3600000", "retention.ms=604800000"),
        (EVENTS, {"bytes": 50_000, "ms": -1}, "retention.bytes=50000", "retention.bytes=-1"),
        (ARTIFACTS, {"bytes": 50_000}, "retention.bytes=50000", "retention.bytes=-1"),
        (
            LABELS,
            {"message.timestamp.type": "CreateTime"},
            "message.timestamp.type=CreateTime",
            "message.timestamp.type=LogAppendTime",
        ),
        (
            SCORES,
            {"bytes": 50_000, "ms": 3_600_000},
            "retention.ms=3600000 and retention.bytes=50000",
            "retention.ms=604800000 and retention.bytes=-1",
        ),
    ],
)
def test_a_shorter_retention_is_taken_with_one_warning(
    kafka: BrokerSettings, caplog: pytest.LogCaptureFixture,
    topic: str, changed: dict[str, int | str], has: str, usual: str,
) -> None:  # fmt: skip
    task = f"t-{uuid.uuid4().hex[:8]}"
    name, specs = topic_name(task, topic), topic_specs(task)
    ensure_topics(kafka, specs)
    alter(kafka, name, **changed)
    ensure_topics(kafka, specs)
    (said,) = caplog.messages
    assert said == (
        f"topic {name} on {kafka.bootstrap} has {has}, a new one has {usual}: it deletes "
        "messages earlier, and a worker or another reader that is further behind loses them; "
        f"to keep them, kafka-configs.sh --bootstrap-server {kafka.bootstrap} --alter "
        f"--topic {name} --add-config {usual.replace(' and ', ',')}"
    )
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.kafka
def test_a_cluster_too_small_for_the_copies_is_named(kafka: BrokerSettings) -> None:
    many = kafka.replace(replication=3)
    with pytest.raises(UsageError, match="has 1 brokers, too few for 3 copies of a topic"):
        ensure_topics(many, topic_specs(f"t-{uuid.uuid4().hex[:8]}"))
    more = kafka.replace(min_insync=2)
    with pytest.raises(UsageError, match="MIN_INSYNC=2 is more than the 1 copies"):
        ensure_topics(more, topic_specs(f"t-{uuid.uuid4().hex[:8]}"))


def test_a_reader_that_waits_asks_rarely_and_has_a_message_when_it_comes(
    broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded broker answers an empty fetch at once."""
    topic, answers, usual = spec(partitions=1), [], Fetcher._handle_fetch_response

    def counted(self: object, *given: object) -> None:
        answers.append(given)
        usual(self, *given)

    ensure_topics(broker, [topic])
    with closing(Producer(broker)) as producer, closing(Reader(broker, [topic.name])) as reader:
        monkeypatch.setattr(Fetcher, "_handle_fetch_response", counted)
        assert reader.poll(WAITED_S) == []
        assert len(answers) <= WAITED_S / EMPTY_S + 2
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(reader.poll, 60.0)
            producer.put(topic.name, b"k", b"v")
            assert [message.value for message in waiting.result(timeout=60.0)] == [b"v"]


@pytest.mark.kafka
def test_a_broker_holds_a_request_for_as_long_as_asked_and_a_message_ends_it(
    kafka: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, answers, usual = spec(partitions=1), [], Fetcher._handle_fetch_response

    def counted(self: object, *given: object) -> None:
        answers.append(given)
        usual(self, *given)

    ensure_topics(kafka, [topic])
    with (
        closing(Producer(kafka)) as producer,
        closing(Reader(kafka, [topic.name], hold_s=9.0)) as reader,
    ):
        monkeypatch.setattr(Fetcher, "_handle_fetch_response", counted)
        assert reader.poll(2 * WAITED_S) == []
        assert answers == []  # with the usual 2 s there would be one
        producer.put(topic.name, b"k", b"v")
        assert [message.value for message in reader.poll(60.0)] == [b"v"]


@pytest.mark.kafka
def test_a_topic_that_nothing_comes_to_does_not_hold_up_another(kafka: BrokerSettings) -> None:
    """Messages are taken one at a time; the broker holds a request for the other topic for longer
    than any of them is waited for."""
    full, empty = spec(), spec()
    ensure_topics(kafka, [full, empty])
    with closing(Producer(kafka)) as producer:
        for _ in range(12):  # several answers of the broker
            producer.send(full.name, b"k", random.randbytes(300_000), [], lambda _error: None)
    with closing(Reader(kafka, [full.name, empty.name], hold_s=9.0)) as reader:
        assert [len(reader.poll(6.0, limit=1)) for _ in range(12)] == [1] * 12


def test_a_new_topics_metadata_are_asked_for_at_once_and_known_ones_after_a_pause() -> None:
    cluster = ClusterMetadata(bootstrap_servers="127.0.0.1:9", retry_backoff_ms=60_000)
    cluster.add_topic("known")
    cluster.failed_update(OSError("away"))
    cluster.add_topic("known")
    cluster.request_update()
    assert cluster.ttl() > 0
    cluster.add_topic("new")
    assert cluster.ttl() == 0


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

        def missed() -> bool:
            with pytest.raises(BrokerUnavailable) as raised:
                producer.send(topic, b"k", b"v", [], lambda _error: None)
            found = raised.value
            return isinstance(found, TopicMissing) and f"topic {topic} is not on" in str(found)

        until(missed, "the broker answers within the time of one attempt")
        with ThreadPoolExecutor() as pool:
            sent = pool.submit(producer.put, topic, b"k", b"v", None, 60.0)
            with pytest.raises(TimeoutError):
                sent.result(timeout=1.0)  # refused five times by now, and not given up
            ensure_topics(kafka, [TopicSpec(topic, 1, "delete", -1)])
            assert sent.result(timeout=60.0) == 0
