"""Sending messages: an idempotent kafka-python producer that survives outages of the broker."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
)

from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Headers
from streams.kafka.refusals import connecting, sending, translated, unavailable
from streams.kafka.settings import BrokerSettings

GAPS = (OutOfOrderSequenceNumberError, UnknownProducerIdError, InvalidProducerEpochError)

Done = Callable[[Exception | None], None]


class Sender(Protocol):
    """The producer interface that the uplink needs; fakes implement it."""

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        """Enqueue a message; another thread calls `done` once, with None or an error."""
        ...

    def close(self, timeout_s: float) -> None: ...


class Producer:
    """An idempotent kafka-python producer, configured to survive outages.

    `delivery_timeout_ms` never expires: after an expired batch this library's idempotent producer
    never sends again. The caller must bound the messages in flight.

    Where the broker finds a gap in the numbers of its batches, the library would go on under a new
    id, with what it has left and without what was refused: later messages would come first. It is
    closed instead, by the first callback, and every later `send` raises what happened.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "zstd",
        "linger_ms": 0,  # what is sent has its size already
        "max_request_size": 4_000_000,
        "delivery_timeout_ms": 2**31 - 1,
        "max_block_ms": 2000,
        "reconnect_backoff_max_ms": 2000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,  # nothing reads them
    }

    def __init__(self, settings: BrokerSettings, *, bootstrap_timeout_s: float = 5.0) -> None:
        with connecting(settings):
            self._producer = KafkaProducer(
                **settings.client_options(),
                **self.OPTIONS,
                bootstrap_timeout_ms=int(bootstrap_timeout_s * 1000),
            )
        self._settings = settings
        self._broken: BrokerUnavailable | None = None

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        try:
            with sending(self._settings, topic):
                future = self._producer.send(topic, value=value, key=key, headers=headers)
        except BrokerUnavailable as exc:
            raise (self._broken or exc) from exc
        future.add_callback(lambda _metadata: done(None))
        future.add_errback(lambda exc: done(self._failed(exc)))

    def _failed(self, exc: Exception) -> Exception:
        """Return the error of a message; by the library's thread, before it sends anything more."""
        found = self._translated(exc)
        if isinstance(exc, GAPS) and isinstance(found, BrokerUnavailable) and not self._broken:
            self._broken = found
            self._producer._sender.force_close()  # `close` would send what is left first
        return found

    def _translated(self, exc: Exception) -> Exception:
        return unavailable(self._settings, exc) if isinstance(exc, KafkaError) else exc

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        """Send one message, wait for the broker's acknowledgement and return the offset. Without a
        value it deletes those of its key.

        Raises TopicMissing when the broker does not have the topic, and another BrokerUnavailable
        when nothing is acknowledged, in time.
        """
        deadline = time.monotonic() + timeout_s
        with sending(self._settings, topic):
            while True:
                try:
                    future = self._producer.send(topic, value=value, key=key, headers=headers or [])
                    break
                except KafkaTimeoutError:  # of max_block_ms: nothing is sent yet
                    if time.monotonic() > deadline:
                        raise
            return int(future.get(timeout=max(0.0, deadline - time.monotonic())).offset)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left; what the broker does not acknowledge in time is given up, and raises
        BrokerUnavailable. The library would leave its thread, which sends it later."""
        try:
            with translated(self._settings):
                self._producer.close(timeout=timeout_s)
        finally:
            self._producer._sender.force_close()
            self._producer._closed = True  # else its finalizer tries once more
