"""The lag is what the workers' group has not committed, up to the end of each partition."""

import asyncio
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from compose.reports.follower import Lag, PartitionLag, lag_of, read_lag, retention_lines
from streams.contract.errors import BrokerUnavailable
from streams.contract.task import Task
from streams.contract.topics import topic_name, topic_specs, worker_group
from streams.kafka.admin import GroupPosition, ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import partition_of
from streams.kafka.settings import BrokerSettings
from streams.worker.settings import WorkerSettings
from tests.rig.made_up.tiny_task import task as tiny


@pytest.fixture(params=[pytest.param("kafka", marks=pytest.mark.kafka), "embedded"])
def broker(request: pytest.FixtureRequest) -> BrokerSettings:
    found: BrokerSettings = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("position", "messages"),
    [
        (GroupPosition(0, 0, 10, 4), 6),
        (GroupPosition(0, 0, 10, 10), 0),
        (GroupPosition(0, 0, 7, None), 7),
        (GroupPosition(0, 0, 3, 9), 3),  # a topic that was made again
    ],
)
def test_the_lag_of_a_partition(position: GroupPosition, messages: int) -> None:
    assert lag_of(position) == PartitionLag(0, position.end, position.committed, messages)


@pytest.mark.parametrize(
    ("position", "lag"),
    [
        (GroupPosition(0, 5, 10, 2), PartitionLag(0, 10, 2, 5, deleted=3)),
        (GroupPosition(0, 3, 10, None), PartitionLag(0, 10, None, 7, deleted=3)),
        (GroupPosition(0, 3, 3, None), PartitionLag(0, 3, None, 0, deleted=3)),
    ],
)
def test_what_was_deleted_unread_is_told(position: GroupPosition, lag: PartitionLag) -> None:
    found = lag_of(position)
    assert found == lag
    (line,) = retention_lines(Lag([found], 3600.0))
    assert line == (
        "partition 0: 3 messages were deleted before a worker read them: a worker that starts, or "
        "reads the partition's next message, declares the events that their producers numbered "
        "(epoch, seq) as lost-by-retention; others cannot be counted. This stays until that "
        "message comes"
    )


@pytest.mark.parametrize(
    ("waits_h", "said"), [(1.0, None), (8.0, "in 2.0 h"), (11.0, "at any moment")]
)
def test_what_will_be_deleted_soon_is_told_before(waits_h: float, said: str | None) -> None:
    waiting = PartitionLag(1, 10, 2, 8, waits_s=3600 * waits_h)
    lines = list(retention_lines(Lag([PartitionLag(0, 3, 3, 0), waiting], 36_000.0)))
    assert len(lines) == (said is not None)
    assert said is None or lines[0].endswith(f"or the first ones are lost {said}")
    assert not list(retention_lines(Lag([waiting], None)))


def test_the_group_is_that_of_the_workers(tmp_path: Path) -> None:
    from streams.worker.app import make_app

    settings = WorkerSettings(
        task="", broker=BrokerSettings(bootstrap="127.0.0.1:1"), store=tmp_path / "store",
        teacher=tmp_path, trusted=(), instance="w0",
    )  # fmt: skip
    assert make_app(tiny, settings).conf.id == worker_group(tiny.id)


async def commit(broker: BrokerSettings, group: str, topic: str, offsets: dict[int, int]) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in offsets])
        await consumer.commit({TopicPartition(topic, p): n for p, n in offsets.items()})
    finally:
        await consumer.stop()


def test_what_is_committed_is_no_lag(broker: BrokerSettings) -> None:
    task = replace(tiny, name=f"t-{uuid.uuid4().hex[:8]}")
    events = topic_name(task.id, "events")
    ensure_topics(broker, topic_specs(task.id, 3))
    producer = Producer(broker)
    counts = [0, 0, 0]
    for n in range(12):
        producer.put(events, f"d{n}".encode(), b"x")
        counts[partition_of(f"d{n}", 3)] += 1
    producer.close()
    first = read_lag(broker, task)
    assert first.partitions == [PartitionLag(p, n, None, n) for p, n in enumerate(counts)]
    assert all(0 <= (each.waits_s or 0.0) < 60 for each in first.partitions)
    assert first.keeps_s in (7 * 86_400, None)  # the embedded broker does not tell
    assert (first.workers, first.open_s) == (0, 14.0)
    asyncio.run(commit(broker, worker_group(task.id), events, {0: counts[0], 2: 1}))
    assert read_lag(broker, task).partitions == [
        PartitionLag(0, counts[0], counts[0], 0),
        PartitionLag(1, counts[1], None, counts[1]),
        PartitionLag(2, counts[2], 1, counts[2] - 1),
    ]


async def lag_beside(broker: BrokerSettings, task: Task) -> Lag:
    """The lag while one process is in the workers' group."""
    events = topic_name(task.id, "events")
    consumer = AIOKafkaConsumer(
        events, bootstrap_servers=broker.bootstrap, group_id=worker_group(task.id)
    )
    await consumer.start()
    try:
        await consumer.getmany(timeout_ms=5_000)
        return await asyncio.to_thread(read_lag, broker, task)
    finally:
        await consumer.stop()


def test_workers_are_counted(broker: BrokerSettings) -> None:
    task = replace(tiny, name=f"t-{uuid.uuid4().hex[:8]}")
    ensure_topics(broker, topic_specs(task.id, 1))
    with closing(Producer(broker)) as producer:
        producer.put(topic_name(task.id, "events"), b"d0", b"x")
    assert asyncio.run(lag_beside(broker, task)).workers == 1
    assert read_lag(broker, task).workers == 0


def test_topics_that_are_not_there_are_named(broker: BrokerSettings) -> None:
    with pytest.raises(BrokerUnavailable, match=r"topic nothing\.v1\.events is not on"):
        read_lag(broker, replace(tiny, name="nothing"))
