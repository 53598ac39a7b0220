"""What a rebalance throws away comes again, also where nothing is committed yet: real Kafka."""

import asyncio
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.contract.topics import topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.worker import patches
from streams.worker.agents import TopicSurvey

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(360)]


@pytest.fixture
def task(kafka: BrokerSettings) -> str:
    name = f"seek-{uuid4().hex[:8]}"
    ensure_topics(kafka, topic_specs(name, 1))
    producer = Producer(kafka)
    for n in range(3):
        producer.put(topic_name(name, "events"), b"d0", f"{n}".encode())
    producer.close()
    return name


async def offsets(consumer: AIOKafkaConsumer) -> list[int]:
    found = await consumer.getmany(timeout_ms=5000)
    return [record.offset for records in found.values() for record in records]


@pytest.mark.parametrize("committed", [None, 0, 2, 9])
def test_messages_that_were_thrown_away_come_again(
    kafka: BrokerSettings, task: str, committed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AIOKafkaConsumer, "seek_to_committed", patches.seek_to_committed)

    async def work() -> None:
        consumer = AIOKafkaConsumer(
            topic_name(task, "events"),
            bootstrap_servers=kafka.bootstrap,
            group_id=task,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            assert await offsets(consumer) == [0, 1, 2]
            place = TopicPartition(topic_name(task, "events"), 0)
            if committed is not None:
                await consumer.commit({place: committed})
            goes_on = None if committed == 9 else committed  # the topic was made again
            assert await consumer.seek_to_committed() == {place: goes_on}
            assert await offsets(consumer) == [0, 1, 2][goes_on or 0 :]
        finally:
            await consumer.stop()

    asyncio.run(work())


def test_what_was_passed_over_is_told_from_markers_of_transactions(
    kafka: BrokerSettings, task: str
) -> None:
    async def send() -> int:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=task)
        await producer.start()
        try:
            for n in range(2):  # each ends with a marker
                async with producer.transaction():
                    sent = await producer.send_and_wait(
                        topic_name(task, "events"), f"{n}".encode(), b"d0"
                    )
        finally:
            await producer.stop()
        return int(sent.offset)

    last = asyncio.run(send())
    assert last == 5  # 0, 1, 2, then 3 and its marker
    survey = TopicSurvey(kafka, task)
    assert survey.first_in(0, 4, last) is None
    assert survey.first_in(0, 1, last) == 1
    assert survey.first_in(0, 3, last) == 3
