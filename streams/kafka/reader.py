"""Reading whole topics without a consumer group."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Headers
from streams.kafka.refusals import connecting, partitions_of, translated
from streams.kafka.settings import BrokerSettings

BULK = 5000  # messages of one poll where many are read
BULK_FETCH, SMALL_FETCH, SLOW_MS = 1 << 20, 1 << 17, 30_000
LAST_MS = 253_402_300_799_999  # the end of the year 9999


@dataclass(frozen=True)
class Received:
    """One message from a Reader; `time_ms` is its timestamp, by its producer's clock; 0 if that is
    no time from 1970 to 9999."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    time_ms: int = 0


class Reader:
    """Reader of topics from their beginning or end, without a group: all partitions, or with `key`
    the one to which the default partitioner maps the key."""

    def __init__(
        self,
        settings: BrokerSettings,
        topics: Sequence[str],
        *,
        key: str | None = None,
        from_beginning: bool = True,
        timeout_s: float = 10.0,
        slow_line: bool = False,
        hold_s: float = 2.0,
    ) -> None:
        """slow_line: one answer of the broker has SMALL_FETCH bytes, or one larger message.
        hold_s: how long the broker holds a request while there is nothing new; a `seek` meanwhile
        waits for it."""
        self._settings = settings
        with connecting(settings):
            self._consumer = KafkaConsumer(
                **settings.client_options(),
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                auto_offset_reset="earliest",
                reconnect_backoff_max_ms=2000,
                fetch_max_wait_ms=round(1000 * hold_s),
                request_timeout_ms=SLOW_MS if slow_line else 10_000,
                max_partition_fetch_bytes=SMALL_FETCH if slow_line else BULK_FETCH,
                metrics_enabled=False,
                bootstrap_timeout_ms=int(timeout_s * 1000),
            )
        try:
            with translated(settings):
                self._assign(topics, key, from_beginning, time.monotonic() + timeout_s)
        except BaseException:
            self._consumer.close(timeout_ms=500)
            raise

    def _assign(
        self, topics: Sequence[str], key: str | None, from_beginning: bool, deadline: float
    ) -> None:
        found: list[TopicPartition] = []
        for topic in topics:
            wanted = partitions_of(self._consumer, self._settings, topic, deadline)
            if key is not None:
                wanted = [partition_of(key, len(wanted))]
            found += [TopicPartition(topic, p) for p in wanted]
        self._consumer.assign(found)
        if from_beginning:
            self._consumer.seek_to_beginning(*found)
        else:
            self._consumer.seek_to_end(*found)

    def poll(self, timeout_s: float = 0.5, limit: int = 500) -> list[Received]:
        """Return the next messages, at most `limit`; an empty list if none come in `timeout_s`."""
        with translated(self._settings):
            polled = self._consumer.poll(timeout_ms=round(1000 * timeout_s), max_records=limit)
        return [
            Received(tp.topic, tp.partition, r.offset, r.key, r.value, _headers(r), _time_ms(r))
            for tp, records in polled.items()
            for r in records
        ]

    def partitions(self, topic: str) -> list[int]:
        """Return the partitions of `topic` that this reader follows."""
        return sorted(tp.partition for tp in self._consumer.assignment() if tp.topic == topic)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._consumer.seek(TopicPartition(topic, partition), offset)

    def seek_back(self, time_ms: int, topic: str | None = None) -> None:
        """Start with the first messages not older than `time_ms`, wall-clock milliseconds, of all
        topics or of one; at the end of a partition that has none."""
        with translated(self._settings):
            followed = [tp for tp in self._consumer.assignment() if topic in (None, tp.topic)]
            asked = dict.fromkeys(followed, time_ms)
            for tp, found in self._consumer.offsets_for_times(asked).items():
                if found is not None:
                    self._consumer.seek(tp, found.offset)
                else:
                    self._consumer.seek_to_end(tp)

    def before(self, ends: Mapping[tuple[str, int], int]) -> bool:
        """Return whether any partition has messages before these offsets left to read."""
        return any(self.position(*place) < end for place, end in ends.items())

    def position(self, topic: str, partition: int) -> int:
        """Return the offset of the next message to read."""
        return self._at(TopicPartition(topic, partition))

    def end(self, topic: str, partition: int) -> int:
        """Return the end offset: that of the next message to be written."""
        with translated(self._settings):
            tp = TopicPartition(topic, partition)
            return int(self._consumer.end_offsets([tp])[tp])

    def read_to_end(self, timeout_s: float = 15.0) -> list[Received]:
        """Return all messages up to the topics' current end; see `to_end`."""
        return list(self.to_end(timeout_s))

    def to_end(self, timeout_s: float = 15.0) -> Iterator[Received]:
        """Yield all messages up to the topics' current end, however many; raise BrokerUnavailable
        if none comes for `timeout_s`."""
        with translated(self._settings):
            ends = self._consumer.end_offsets(list(self._consumer.assignment()))
        deadline = time.monotonic() + timeout_s
        while left := {tp: end for tp, end in ends.items() if self._at(tp) < end}:
            ends = left
            found = self.poll(0.2, limit=BULK)
            yield from found
            if found:
                deadline = time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"{self._settings.bootstrap} returned no message for {timeout_s:.0f} s"
                )

    def _at(self, tp: TopicPartition) -> int:
        with translated(self._settings):
            return int(self._consumer.position(tp, timeout_ms=5000))

    def bounds(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return the first and the end offset of all partitions that this reader follows."""
        with translated(self._settings):
            followed = list(self._consumer.assignment())
            begins = self._consumer.beginning_offsets(followed)
            ends = self._consumer.end_offsets(followed)
        return {(tp.topic, tp.partition): (int(begins[tp]), int(ends[tp])) for tp in followed}

    def read_back(self, timeout_s: float = 5.0, step: int = 16) -> Iterator[list[Received]]:
        """Yield the topics' current messages backwards: of each partition the last `step` ones,
        then those before them, until all are read or `timeout_s` has passed."""
        deadline = time.monotonic() + timeout_s
        with translated(self._settings):
            followed = list(self._consumer.assignment())
            begins = self._consumer.beginning_offsets(followed)
            ends = self._consumer.end_offsets(followed)
            while before := {tp: end for tp, end in ends.items() if end > begins[tp]}:
                starts = {tp: max(begins[tp], end - step) for tp, end in before.items()}
                found = self._between(starts, before, deadline)
                if found is None:
                    return
                yield found
                ends = starts

    def _between(
        self,
        starts: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
        deadline: float,
    ) -> list[Received] | None:
        """Return the messages from `starts` to before `ends`; None on a timeout."""
        self._consumer.pause(*self._consumer.assignment())
        self._consumer.resume(*ends)
        for tp, start in starts.items():
            self._consumer.seek(tp, start)
        found: list[Received] = []
        while any(self._consumer.position(tp, timeout_ms=5000) < end for tp, end in ends.items()):
            if time.monotonic() > deadline:
                return None
            polled = self.poll(0.2)
            found += [m for m in polled if m.offset < ends[TopicPartition(m.topic, m.partition)]]
        return found

    def close(self) -> None:
        self._consumer.close(timeout_ms=1000)


def _headers(record: Any) -> Headers:
    """Kafka allows null as a header's value: it is read as an empty one."""
    return [(name, value or b"") for name, value in record.headers]


def _time_ms(record: Any) -> int:
    """A producer can set any number."""
    return int(record.timestamp) if 0 <= record.timestamp <= LAST_MS else 0


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key by Kafka's default partitioner (murmur2)."""
    return (int(murmur2(key.encode())) & 0x7FFFFFFF) % partitions
