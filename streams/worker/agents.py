"""The Faust agent and the Kafka side of a commit: thin shells around commit.py.

What Faust leaves to us: it would acknowledge a message when the agent asks for the next one, so the
stream is read without and messages are acknowledged by the commit, in offset order; an exception in
an agent would skip its message, so it stops the process.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from faust.types import EventT, StreamT

from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.topics import MAX_MESSAGE_BYTES
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.committer import Committer
from streams.worker.commit.dead_letters import Incoming
from streams.worker.commit.publications import Outgoing
from streams.worker.windows.tumbling import Message

PUBLISH_TIMEOUT_S = 30.0
STOP_S = 5.0
MAX_BATCH_BYTES = 900_000  # below what brokers take (1,048,588), and a message in it

log = logging.getLogger(__name__)


class FaustBroker:
    """commit.Broker: a producer of its own, and Faust's consumer.

    Faust's producer hands over one message at a time, which costs more than to make it; a batch of
    a partition's messages is one call and one acknowledgement.
    """

    def __init__(self, app: faust.App, topic: str, broker: BrokerSettings) -> None:
        self._app = app
        self._topic = topic
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
            raise BrokerUnavailable(f"no producer: {type(exc).__name__}: {exc}") from exc

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
                f"the brokers refuse a message as too long ({exc}): they must take "
                f"{MAX_MESSAGE_BYTES} bytes (max.message.bytes)"
            ) from exc
        except (KafkaError, TimeoutError) as exc:
            raise BrokerUnavailable(f"publishing failed: {type(exc).__name__}: {exc}") from exc

    def _batches(self, messages: Sequence[Outgoing]) -> list[tuple[str, int, BatchBuilder]]:
        """The messages of each partition in their order, in batches that a broker takes."""
        made: list[tuple[str, int, BatchBuilder]] = []
        last: dict[tuple[str, int], BatchBuilder] = {}
        for m in messages:
            to = m.topic, m.partition
            fields = {"timestamp": None, "key": m.key, "value": m.value, "headers": m.headers}
            if to not in last or last[to].append(**fields) is None:  # none yet, or it is full
                last[to] = self._producer.create_batch()
                last[to].append(**fields)  # the first is taken, however long
                made.append((*to, last[to]))
        return made

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            cast(EventT[object], message.token).ack()

    async def commit_offsets(self) -> None:
        try:
            await self._app.consumer.commit({self._topic})
        except KafkaError as exc:  # the acknowledgements stay: the next commit carries them
            log.warning("committing offsets failed: %s: %s", type(exc).__name__, exc)


class EventIntake:
    """Feeds one agent's messages to the committer, and stops taking when it is full."""

    def __init__(
        self, app: faust.App, committer: Committer, fail: Callable[[BaseException], None]
    ) -> None:
        self._app = app
        self._committer = committer
        self._fail = fail
        self._loaded = -1  # the generation whose partitions the committer owns
        self._changed = asyncio.Event()

    def loaded(self, generation: int) -> None:
        """The committer has the partitions of this generation of the group."""
        self._loaded = generation
        self._changed.set()

    def wake(self) -> None:
        """There may be room again, or another generation."""
        self._changed.set()

    async def consume(self, stream: StreamT[Any]) -> None:
        """The agent."""
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
        # Faust lets messages flow while an assignment is still being loaded from the store.
        while self._loaded != message.generation_id or self._committer.full:
            # After a rebalance the message comes again, to whoever owns its partition then.
            if message.generation_id != self._app.consumer_generation_id:
                return
            self._changed.clear()
            await self._changed.wait()
        headers = cast(Iterable[tuple[str, bytes]], message.headers or ())
        incoming = Incoming(message.partition, message.offset, message.key, message.value, headers)
        self._committer.receive(incoming, event, time.monotonic())


def client_options(broker: BrokerSettings) -> dict[str, Any]:
    """The broker settings as aiokafka's keyword arguments."""
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in broker.bootstrap.split(",")],
        "security_protocol": broker.security_protocol,
        "ssl_context": ssl_context(broker),
    }
    if broker.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": broker.sasl_mechanism or "PLAIN",
            "sasl_plain_username": broker.username,
            "sasl_plain_password": broker.password,
        }
    return options


def ssl_context(broker: BrokerSettings) -> ssl.SSLContext | None:
    """For TLS, with the client's certificate where one is set."""
    if "SSL" not in broker.security_protocol:
        return None
    context = ssl.create_default_context(cafile=broker.cafile)
    if broker.certfile:
        context.load_cert_chain(broker.certfile, broker.keyfile)
    return context
