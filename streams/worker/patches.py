"""What aiokafka 0.14 and faust-streaming 0.15.3 need before a worker can use them.

`install` changes aiokafka:

1. Header names. aiokafka repeats a batch for ever that has a header's name that is not UTF-8, see
   streams.kafka.patches. Where its compiled parser fails in a batch, the other one reads the rest.
2. Seeking. After a rebalance Faust seeks to the committed offsets, so that what it has discarded
   comes again. aiokafka leaves a partition where it is that has none, or 0: messages would be lost.
3. Held requests. While messages wait to be taken aiokafka asks for other partitions alone: until
   the broker lets go of a fetch of `labels`, 1.5 s, it does not ask for `events`.
4. Empty answers. The embedded broker does not hold a fetch until there is a message, and aiokafka
   asks again at once: an idle worker would use a core.
5. Cancelled fetches. aiokafka's ends without an error where it waits for the broker, but not where
   it or 4 waits before it asks again: Faust's thread dies, and a worker's end waits for it in vain.
6. Speed. Its check sums take a tenth of reading; it stops to read a socket after 128 KB.
7. Heartbeats. It sends none while an assignment is loaded. On a busy machine that takes longer than
   a session: the broker expels the worker, which joins and loads again, for ever.
8. Moved brokers. It asks only the brokers of the last answer for metadata, without a pause: where
   all have moved it never comes back. Here it asks the addresses of the start, too.
9. Sessions. It only logs that no broker answers its heartbeats; `silent_s` returns since when.
10. Refusals. Its lines about a connection name the error alone: here also the setting to check.
11. Hosts that are down. It waits for one as long as for an answer, 90 s, before it asks the next.

`patch_app` changes Faust, whose driver for librdkafka is unfit: docs/decisions.md, decision 31.

1. Full queues. While some are full Faust asks for the other partitions alone and waits a second for
   those.
2. Livelocks. Its detector, which only logs, ends the consumer where an assignment is new.
3. Tables. Its start waits a second for an application's tables; a worker has none.
4. Sensors. It warns at each start and rebalance that there are none.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaConsumer, client, conn
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import BrokerMetadata
from crc32c import crc32c

from streams.kafka.patches import Batch
from streams.kafka.refusals import explain

LENGTH_AT, OVERHEAD = 8, 12  # in a batch: how long it is after so many bytes
FORM_AT, SUM_AT, SUMMED_AT = 16, 17, 21  # in a batch: "magic", check sum, what it is of
EMPTY_S = 0.1  # after an empty answer that came sooner
FULL_S = 0.02  # between two looks while the queue of a partition is full
CONNECT_MS = 10_000  # for a connection, and for each answer while it is set up; as in Java's client
HELD_MS = 50  # by the broker, a fetch of other partitions than those with messages to be taken


class _Batch:
    def __init__(self, batch: Any, data: memoryview, place: tuple[str, int]) -> None:
        self._batch, self._data, self._place = batch, data, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def validate_crc(self) -> bool:
        if self._data[FORM_AT] < 2:  # another sum, before Kafka 0.11
            return bool(self._batch.validate_crc())
        return bool(crc32c(self._data[SUMMED_AT:]) == int.from_bytes(self._data[SUM_AT:SUMMED_AT]))

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for read, record in enumerate(self._batch, 1):  # noqa: B007
                yield record
            return
        except Exception:  # a header's name, or what the other parser reports
            slow = Batch(self._data)
        slow.place = self._place
        yield from islice(slow, read, None)


class Records:
    """The batches of one fetched partition."""

    place = ("?", 0)

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._records = memoryview(data), 0, MemoryRecords(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> Any:
        begin, length = self._at, self._data[self._at + LENGTH_AT : self._at + OVERHEAD]
        self._at += OVERHEAD + int.from_bytes(length)
        return _Batch(self._records.next_batch(), self._data[begin : self._at], self.place)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # it has no types
    def __init__(self, tp: Any, records: Any, *given: Any) -> None:
        records.place = tp.topic, tp.partition
        super().__init__(tp, records, *given)


_connect = conn.create_conn
_to_committed = AIOKafkaConsumer.seek_to_committed
_fetch = fetcher.Fetcher._proc_fetch_request
_joined = GroupCoordinator._on_join_complete
_heartbeat = GroupCoordinator._do_heartbeat
_update = AIOKafkaClient._metadata_update
_answered_at = time.monotonic()  # this process's worker: it has one consumer


async def create_conn(*given: Any, request_timeout_ms: int, **more: Any) -> Any:
    """Connect as aiokafka does, in less time than a request has."""
    limit_ms = min(CONNECT_MS, request_timeout_ms)
    made = await _connect(*given, request_timeout_ms=limit_ms, **more)
    made._request_timeout = request_timeout_ms / 1000
    return made


async def seek_to_committed(self: Any, *partitions: Any) -> Mapping[Any, int | None]:
    """Seek as aiokafka does, and to the beginning where nothing is committed, or an offset that the
    partition does not have, as its topic was deleted and made again."""
    found: dict[Any, int | None] = dict(await _to_committed(self, *partitions))
    with contextlib.suppress(KafkaError):  # a broker that is away: the next rebalance looks again
        ends = await self.end_offsets([tp for tp, offset in found.items() if offset])
        found |= {tp: None for tp, end in ends.items() if end < (found[tp] or 0)}
    if fresh := [partition for partition, offset in found.items() if not offset]:
        await self.seek_to_beginning(*fresh)
    return found


async def _proc_fetch_request(self: Any, assignment: Any, node: Any, request: Any) -> Any:
    began = time.monotonic()
    if self._records:
        request._max_wait_ms = min(request._max_wait_ms, HELD_MS)
    try:
        found = await _fetch(self, assignment, node, request)
        if not found and time.monotonic() - began < EMPTY_S / 2:
            await asyncio.sleep(EMPTY_S)
    except asyncio.CancelledError:
        return False
    return found


def silent_s() -> float:
    """Return for how long no broker has answered for this process's group."""
    return time.monotonic() - _answered_at


async def _do_heartbeat(self: Any) -> bool:
    global _answered_at
    answered: bool = await _heartbeat(self)
    if answered:
        _answered_at = time.monotonic()
    return answered


async def _on_join_complete(self: Any, *given: Any) -> None:
    global _answered_at
    _answered_at = time.monotonic()
    self._start_heartbeat_task()
    await _joined(self, *given)


async def _metadata_update(self: Any, *given: Any) -> bool:
    found: bool = await _update(self, *given)
    if not found:  # until the next answer
        for host, port, _ in self.hosts:
            node = f"{host}:{port}"
            self.cluster._brokers[node] = BrokerMetadata(node, host, port, None)
        await asyncio.sleep(EMPTY_S)
    return found


def _advise(record: logging.LogRecord) -> bool:
    for cause in record.args if isinstance(record.args, tuple) else ():
        if isinstance(cause, Exception) and (why := explain(cause)):
            record.msg = f"{record.msg}: {why.replace('%', '%%')}"
        elif isinstance(cause, TimeoutError) and record.msg.endswith(": %s") and not str(cause):
            record.msg += "no answer"
    return True


def install() -> None:
    """Change all clients of aiokafka in this process."""
    conn.READER_LIMIT = 64 << 20  # bytes, more than an answer has
    fetcher.MemoryRecords, fetcher.PartitionRecords = Records, _PartitionRecords
    fetcher.Fetcher._proc_fetch_request = _proc_fetch_request
    client.create_conn = create_conn
    AIOKafkaConsumer.seek_to_committed = seek_to_committed
    GroupCoordinator._on_join_complete = _on_join_complete
    GroupCoordinator._do_heartbeat = _do_heartbeat
    AIOKafkaClient._metadata_update = _metadata_update
    logging.getLogger("aiokafka").addFilter(_advise)


def patch_app(app: Any) -> None:
    """Change one application of Faust."""
    consumer, usual = app.consumer, app.consumer._wait_next_records

    async def wait(timeout_s: float) -> Any:
        if not consumer._buffered_partitions:
            return await usual(timeout_s)
        if consumer.flow_active and not consumer._get_active_partitions():
            await asyncio.sleep(FULL_S)
            return {}, set()
        return await usual(min(timeout_s, FULL_S))

    async def nothing(*_given: object) -> None:
        return None

    consumer._wait_next_records, consumer.verify_all_partitions_active = wait, nothing
    app.tables.sleep = nothing  # they sleep nowhere else
    silent = logging.getLogger("faust.app.base")
    silent.addFilter(lambda record: "Missing sensor state" not in record.msg)
