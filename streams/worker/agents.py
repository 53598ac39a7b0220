"""The Faust agent and the Kafka side of a commit: thin shells around the committer.

Faust would acknowledge a message when the agent asks for the next one, so its acknowledgement is
off and the commit acknowledges messages in offset order. An exception in a Faust agent would skip
its message, so here it stops the process.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from faust.types import TP, EventT, StreamT

from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.topics import EVENTS, MAX_MESSAGE_BYTES, topic_name, worker_group
from streams.fleet.following import read_view
from streams.kafka.admin import GroupPosition, group_positions, made_again
from streams.kafka.reader import Reader, partition_of
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.committer import Committer
from streams.worker.commit.hole_keeper import Survey, insisted
from streams.worker.commit.messages import Incoming, Outgoing
from streams.worker.windows.tumbling import ListeningClock, Message

PUBLISH_TIMEOUT_S = 30.0
STOP_S = 5.0
READ_S = 15.0
MAX_BATCH_BYTES = 900_000  # below the brokers' default limit of 1,048,588

log = logging.getLogger(__name__)


class FaustBroker:
    """Implementation of committer.Broker with its own producer and Faust's consumer.

    Faust's producer sends one message at a time, which costs more than making it; here a batch of a
    partition's messages is one call and one acknowledgement.
    """

    def __init__(self, app: faust.App, topics: Sequence[str], broker: BrokerSettings) -> None:
        """topics: those that the worker reads, `events` first."""
        self._app = app
        self._topics = topics
        self._producer = AIOKafkaProducer(
            **client_options(broker),
            acks="all",
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=2_000_000,
            request_timeout_ms=20_000,
        )

    async def start(self) -> None:
        try:
            await self._producer.start()
        except KafkaError as exc:
            raise BrokerUnavailable(f"starting the producer failed: {exc!r}") from exc

    async def stop(self) -> None:
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(self._producer.stop(), STOP_S)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await asyncio.gather(
                    *[
                        await self._producer.send_batch(batch, topic, partition=partition)
                        for topic, partition, batch in self._batches(messages)
                    ]
                )
        except MessageSizeTooLargeError as exc:
            raise ProcessFailed(
                f"the brokers refuse a message as too large ({exc}): set max.message.bytes to at "
                f"least {MAX_MESSAGE_BYTES}"
            ) from exc
        except (KafkaError, TimeoutError) as exc:
            raise BrokerUnavailable(f"publishing failed: {type(exc).__name__}: {exc}") from exc

    def _batches(self, messages: Sequence[Outgoing]) -> list[tuple[str, int, BatchBuilder]]:
        """Return batches (topic, partition, batch) within the size limit, in message order."""
        made: list[tuple[str, int, BatchBuilder]] = []
        last: dict[tuple[str, int], BatchBuilder] = {}
        for m in messages:
            to = m.topic, m.partition
            fields = {"timestamp": None, "key": m.key, "value": m.value, "headers": m.headers}
            if to not in last or last[to].append(**fields) is None:  # no batch yet, or it is full
                last[to] = self._producer.create_batch()
                last[to].append(**fields)  # a batch accepts its first message of any size
                made.append((*to, last[to]))
        return made

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            cast(EventT[object], message.token).ack()

    async def begin(self, partition: int) -> int:
        """Return the first offset of a partition; raise BrokerUnavailable."""
        tp = TP(self._topics[0], partition)
        try:
            found = await self._app.consumer.earliest_offsets(tp)
        except KafkaError as exc:
            raise BrokerUnavailable(f"the first offset is not known: {exc!r}") from exc
        return int(found[tp])

    async def commit_offsets(self) -> None:
        try:
            await self._app.consumer.commit(set(self._topics))
        except KafkaError as exc:  # the next commit repeats it
            log.warning("committing offsets failed: %s: %s", type(exc).__name__, exc)


class Listening:
    """A `tumbling.Clock` that goes by Faust's fetches."""

    def __init__(self, app: faust.App, topic: str) -> None:
        self._app, self._topic = app, topic
        self._clocks: defaultdict[int, ListeningClock] = defaultdict(ListeningClock)
        self._answers: dict[
            int, tuple[int, float]
        ] = {}  # the last one's timestamp; when it was seen

    def heard(self, partition: int, _now_s: float) -> float:
        return self._clocks[partition].heard(time.monotonic())

    def listened(self, partition: int, _now_s: float) -> float:
        return self._clocks[partition].seconds

    def forget(self) -> None:
        """Forget all partitions: their next owner measures anew."""
        self._clocks.clear()
        self._answers.clear()

    def has(self, topic: str) -> bool:
        """Return whether the brokers have a topic, by what they said last."""
        client = cast(Any, self._app.consumer)._thread._ensure_consumer()
        return bool(client.partitions_for_topic(topic))

    async def look(self, taken: Mapping[int, int]) -> None:
        """Look at the broker's last answers. taken: by partition the offset up to which messages
        are taken in."""
        consumer = cast(Any, self._app.consumer)
        for partition, offset in taken.items():
            tp = TP(self._topic, partition)
            with contextlib.suppress(AssertionError):  # a rebalance has just taken it away
                client = consumer._thread._ensure_consumer()
                answered_ms, end = client.last_poll_timestamp(tp), client.highwater(tp)
                if answered_ms is None or end is None:
                    continue
                if end < offset and (last := (await consumer.highwaters(tp))[tp]) < offset:
                    at = GroupPosition(partition, 0, last, offset)
                    raise ProcessFailed(f"{made_again(self._topic, at)}; a restart reads it")
                if offset < end and await self._only_markers(consumer, tp, offset, end):
                    offset = end
                seen_s = self._seen_s(partition, answered_ms)
                self._clocks[partition].answered(seen_s, end, offset)

    def _seen_s(self, partition: int, answered_ms: int) -> float:
        """Return when the answer was seen first: the client dates it by a clock that may be set."""
        if self._answers.get(partition, (None, 0.0))[0] != answered_ms:
            self._answers[partition] = answered_ms, time.monotonic()
        return self._answers[partition][1]

    async def _only_markers(self, consumer: Any, tp: TP, offset: int, end: int) -> bool:
        """Return whether only the markers of transactions, which are no messages, are left."""
        read = consumer._read_offset[tp]  # the last message that Faust has taken
        return (read is None or read < offset) and (await consumer.position(tp) or 0) >= end


class EventIntake:
    """Passes one agent's messages, of `topic`, to the committer, and waits while that is full."""

    def __init__(
        self,
        app: faust.App,
        topic: str,
        committer: Committer,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._app, self._topic = app, topic
        self._committer = committer
        self._fail = fail
        self._loaded = -1  # the group generation whose partitions the committer owns
        self._changed = asyncio.Event()

    def loaded(self, generation: int) -> None:
        """Record that the committer has loaded the partitions of this group generation."""
        self._loaded = generation
        self._changed.set()

    def wake(self) -> None:
        """Check again whether there is room, or a new generation."""
        self._changed.set()

    async def consume(self, stream: StreamT[Any]) -> None:
        """Run as the Faust agent."""
        try:
            async for event in cast(faust.Stream[Any], stream).noack().events():
                await self._receive(event)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._fail(exc)
            raise

    async def _receive(self, event: EventT[bytes]) -> None:
        message = event.message
        # Faust delivers messages while an assignment is still being loaded from the store.
        while self._loaded != message.generation_id or self._committer.full:
            # After a rebalance the partition's new owner gets the message again.
            if message.generation_id != self._app.consumer_generation_id:
                return
            self._changed.clear()
            await self._changed.wait()
        headers = cast(Iterable[tuple[str, bytes]], message.headers or ())
        where, what = (message.partition, message.offset), (message.key, message.value)
        incoming = Incoming(*where, *what, headers, self._topic)
        self._committer.receive(incoming, event, time.monotonic())


def client_options(broker: BrokerSettings) -> dict[str, Any]:
    """Return the broker settings as aiokafka's keyword arguments."""
    found = broker.client_options().items()
    options = {name: value for name, value in found if not name.startswith("ssl_")}
    return {**options, "ssl_context": ssl_context(broker)}


def ssl_context(broker: BrokerSettings) -> ssl.SSLContext | None:
    """Return the TLS context, with the client certificate if one is set; None without TLS."""
    if "SSL" not in broker.security_protocol:
        return None
    context = ssl.create_default_context(cafile=broker.cafile)
    if broker.certfile:
        context.load_cert_chain(broker.certfile, broker.keyfile)
    return context


@dataclass(frozen=True)
class TopicSurvey:
    """What a worker asks of `events` beside messages: first and end offsets, and what devices have
    delivered. task: the id of the task version."""

    broker: BrokerSettings
    task: str

    async def positions(self, topic: str) -> dict[int, GroupPosition]:
        """Return the workers' position in each partition; wait for an unavailable broker."""
        return await insisted(asyncio.to_thread, self._positions, topic)

    def survey(self, partition: int) -> Survey:
        """Return the partition's end, and the events that its devices had delivered before. Raises
        BrokerUnavailable."""
        states = read_view(self.broker, self.task).devices.values()
        positions = self._positions(EVENTS)
        delivered = {
            (state.device, state.epoch): state.produced - state.pending
            for state in states
            if partition_of(state.device, len(positions)) == partition
        }
        return positions[partition].end, delivered

    def first_in(self, partition: int, begin: int, end: int) -> int | None:
        """Return the offset of the first message from `begin` to before `end`, after which there is
        another one; None if there are only markers of transactions. Raises BrokerUnavailable."""
        topic = topic_name(self.task, EVENTS)
        deadline = time.monotonic() + READ_S
        with closing(Reader(self.broker, [topic], from_beginning=False)) as reader:
            reader.seek(topic, partition, begin)
            while time.monotonic() < deadline:
                found = [m.offset for m in reader.poll() if m.partition == partition]
                if found:
                    return found[0] if found[0] < end else None
        raise BrokerUnavailable(f"{topic}-{partition} gave nothing from {begin} in {READ_S:.0f} s")

    def _positions(self, of: str) -> dict[int, GroupPosition]:
        topic, group = topic_name(self.task, of), worker_group(self.task)
        positions = {at.partition: at for at in group_positions(self.broker, group, topic)}
        for partition, at in positions.items():
            if (at.committed or 0) > at.end:  # and so the consumer seeks (patches)
                log.warning("%s; it is read from its start", made_again(topic, at))
                positions[partition] = replace(at, committed=None)
        return positions
