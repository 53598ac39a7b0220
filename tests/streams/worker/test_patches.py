"""How Faust's consumer and aiokafka's wait."""

import asyncio
import logging
import random
import time
import uuid
from types import SimpleNamespace

import faust
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import SaslAuthenticationFailed

from streams.contract.topics import EVENTS, LABELS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.worker import patches
from streams.worker.patches import EMPTY_S, FULL_S, patch_app

IDLE = SimpleNamespace(_records={}), None, 0, None  # what a fetcher without messages is given


class Polled:
    """What `patch_app` reads of a consumer of Faust's, and how it was asked."""

    def __init__(self, full: set[int], active: set[int], flow: bool = True) -> None:
        self._buffered_partitions, self._active, self.flow_active = full, active, flow
        self.asked: list[float] = []

    def _get_active_partitions(self) -> set[int]:
        return self._active

    async def _wait_next_records(self, timeout_s: float) -> tuple[dict[int, str], set[int]]:
        self.asked.append(timeout_s)
        return {1: "records"}, self._active

    async def verify_all_partitions_active(self) -> None:
        raise AssertionError("a position is not known yet")


def patched(consumer: Polled) -> None:
    patch_app(SimpleNamespace(consumer=consumer, tables=SimpleNamespace()))


@pytest.mark.parametrize(
    ("consumer", "asked"),
    [
        (Polled(full=set(), active={1, 2}), [1.0]),
        (Polled(full={2}, active={1}), [FULL_S]),
        (Polled(full={1, 2}, active=set(), flow=False), [FULL_S]),
    ],
)
def test_records_are_waited_for_briefly_while_a_queue_is_full(
    consumer: Polled, asked: list[float]
) -> None:
    patched(consumer)
    assert asyncio.run(consumer._wait_next_records(1.0)) == ({1: "records"}, consumer._active)
    assert consumer.asked == asked
    asyncio.run(consumer.verify_all_partitions_active())


def test_where_all_queues_are_full_nothing_is_asked_for() -> None:
    consumer = Polled(full={1, 2}, active=set())
    patched(consumer)
    assert asyncio.run(consumer._wait_next_records(1.0)) == ({}, set())
    assert consumer.asked == []


def test_a_start_waits_for_no_tables() -> None:
    async def sleep() -> None:
        app = faust.App("tables", broker="kafka://127.0.0.1:1", store="memory://")
        patch_app(SimpleNamespace(consumer=Polled(set(), set()), tables=app.tables))
        await asyncio.wait_for(app.tables.sleep(3600.0), 60.0)

    asyncio.run(sleep())  # else a TimeoutError


@pytest.mark.parametrize(("after_s", "answer", "pauses"), [
    (0.0, False, True), (0.0, True, False), (EMPTY_S, False, False),
])  # fmt: skip
def test_a_broker_that_holds_no_fetch_is_not_asked_again_at_once(
    after_s: float, answer: bool, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(*_: object) -> bool:
        await asyncio.sleep(after_s)
        return answer

    monkeypatch.setattr(patches, "_fetch", fetch)
    patches.install()
    began = time.monotonic()
    assert asyncio.run(Fetcher._proc_fetch_request(*IDLE)) is answer
    assert (time.monotonic() - began >= after_s + EMPTY_S) is pauses


@pytest.mark.parametrize("waits_s", [0.0, 60.0])
def test_a_fetch_that_is_cancelled_while_it_waits_ends_without_an_error(
    waits_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In aiokafka, and in what we wait after an empty answer: a worker ends at once."""

    async def fetch(*_: object) -> bool:
        await asyncio.sleep(waits_s)
        return False

    async def cancelled() -> bool:
        waiting = asyncio.create_task(Fetcher._proc_fetch_request(*IDLE))
        for _ in range(5):  # until it has come to where it waits
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        return await waiting

    monkeypatch.setattr(patches, "_fetch", fetch)
    patches.install()
    assert asyncio.run(cancelled()) is False


@pytest.mark.kafka
def test_a_topic_that_nothing_comes_to_does_not_hold_up_another(kafka: BrokerSettings) -> None:
    """Messages wait to be taken for longer than aiokafka waits with the next fetch; that one asks
    for the other topic alone, and the broker may hold it for a minute."""
    task, hold_s = f"t-{uuid.uuid4().hex[:8]}", 60.0
    ensure_topics(kafka, topic_specs(task, 1))
    places = [TopicPartition(topic_name(task, of), 0) for of in (EVENTS, LABELS)]
    producer = Producer(kafka)
    for _ in range(6):  # two fetches
        producer.send(places[0].topic, b"d", random.randbytes(300_000), [], lambda _error: None)
    producer.close()

    async def read() -> None:
        consumer = AIOKafkaConsumer(
            **kafka.client_options(), auto_offset_reset="earliest",
            fetch_max_wait_ms=round(1000 * hold_s), request_timeout_ms=round(2000 * hold_s),
        )  # fmt: skip
        async with consumer:
            consumer.assign(places)
            last = (await consumer.getone()).offset
            await asyncio.sleep(0.5)  # the rest of its fetch waits meanwhile
            while last < 5:
                last = (await asyncio.wait_for(consumer.getone(), hold_s / 2)).offset

    patches.install()
    asyncio.run(read())  # else a TimeoutError


@pytest.mark.kafka
def test_of_two_hosts_one_may_be_down(
    kafka: BrokerSettings, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiokafka.conn.random.shuffle", lambda found: found)

    async def connect() -> None:
        hosts = f"{silent},{kafka.bootstrap}"
        client = AIOKafkaClient(bootstrap_servers=hosts, request_timeout_ms=600_000)
        await asyncio.wait_for(client.bootstrap(), 120.0)
        assert client.cluster.brokers()
        await client.close()

    patches.install()
    asyncio.run(connect())  # else a TimeoutError


class Loading(ConsumerRebalanceListener):
    """Takes longer than a session to load an assignment."""

    def __init__(self, load_s: float) -> None:
        self._load_s, self.loads, self.loaded = load_s, 0, asyncio.Event()

    async def on_partitions_revoked(self, revoked: object) -> None:
        pass

    async def on_partitions_assigned(self, assigned: object) -> None:
        self.loads += 1
        await asyncio.sleep(self._load_s)
        self.loaded.set()


@pytest.mark.kafka
def test_a_worker_that_loads_for_longer_than_a_session_stays_in_its_group(
    kafka: BrokerSettings,
) -> None:
    task, session_s = f"t-{uuid.uuid4().hex[:8]}", 6.0  # the brokers' least
    ensure_topics(kafka, topic_specs(task, 1))
    loading, place = Loading(1.5 * session_s), TopicPartition(topic_name(task, EVENTS), 0)
    producer = Producer(kafka)
    producer.send(place.topic, b"d", b"", [], lambda _error: None)
    producer.close()

    async def read() -> None:
        consumer = AIOKafkaConsumer(
            **kafka.client_options(), group_id=task, group_instance_id="w",
            auto_offset_reset="earliest", enable_auto_commit=False,
            session_timeout_ms=round(1000 * session_s), heartbeat_interval_ms=500,
        )  # fmt: skip
        consumer.subscribe([place.topic], listener=loading)
        async with consumer:
            await consumer.getone()
            await asyncio.wait_for(loading.loaded.wait(), 60.0)
            await consumer.commit({place: 1})  # refused where it has left the group
            assert await consumer.committed(place) == 1

    patches.install()
    asyncio.run(read())
    assert loading.loads == 1


def test_a_connection_that_is_refused_names_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    patches.install()
    error = SaslAuthenticationFailed("100 % refused")
    logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, error)
    logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, OSError("away"))
    logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, TimeoutError())
    refused, away, silent = (record.getMessage() for record in caplog.records)
    assert "check TIDEWHEEL_KAFKA_USERNAME, TIDEWHEEL_KAFKA_PASSWORD" in refused
    assert away == "Unable connect to node with id 1: away"
    assert silent == "Unable connect to node with id 1: no answer"
