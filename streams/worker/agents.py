"""The Faust agent and the Kafka side of a commit: thin shells around commit.py.

What Faust leaves to us: it would acknowledge a message when the agent asks for the next one, so the
stream is read without and messages are acknowledged by the commit, in offset order; an exception in
an agent would skip its message, so it stops the process.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import faust
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from faust.exceptions import ProducerSendError
from faust.types import EventT, StreamT

from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.topics import MAX_MESSAGE_BYTES
from streams.worker.commit import Committer
from streams.worker.letters import Incoming
from streams.worker.reports import Outgoing
from streams.worker.windows import Message

PUBLISH_TIMEOUT_S = 30.0

log = logging.getLogger(__name__)


class FaustBroker:
    """commit.Broker on Faust's producer and consumer."""

    def __init__(self, app: faust.App, topic: str) -> None:
        self._app = app
        self._topic = topic

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        producer = self._app.producer
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                pending: list[Awaitable[object]] = [
                    await producer.send(m.topic, m.key, m.value, m.partition, None, m.headers)
                    for m in messages
                ]
                await asyncio.gather(*pending)
        except MessageSizeTooLargeError as exc:
            raise ProcessFailed(
                f"the brokers refuse a message as too long ({exc}): they must take "
                f"{MAX_MESSAGE_BYTES} bytes (max.message.bytes)"
            ) from exc
        except (KafkaError, ProducerSendError, TimeoutError) as exc:
            raise BrokerUnavailable(f"publishing failed: {type(exc).__name__}: {exc}") from exc

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            cast(EventT[object], message.token).ack()

    async def commit_offsets(self) -> None:
        try:
            await self._app.consumer.commit({self._topic})
        except KafkaError as exc:  # the acknowledgements stay: the next commit carries them
            log.warning("committing offsets failed: %s: %s", type(exc).__name__, exc)


class Intake:
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
