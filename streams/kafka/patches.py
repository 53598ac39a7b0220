"""What kafka-python 3.0.12 needs before a process can use it; `install` changes all its clients.

1. Record batches. Kafka's protocol says that a header's name is UTF-8; brokers do not check it.
   kafka-python and aiokafka decode names while they parse a batch, and repeat a batch that they
   cannot parse for ever: one message would stop each reader of its topic. Here bytes of a name that
   are no UTF-8 are read as "?", and the message is one as any other, for its reader to judge.
   Records that cannot be read at all, as with a codec that is not installed, are skipped: logged
   with topic, partition and offsets, and counted in `skipped`. For aiokafka
   streams.worker.patches does the same.
2. Decoders. The library compiles the decoder of a kind of response when the first one comes, and
   keeps it for the process. Meanwhile it changes an attribute that all threads share, and then sets
   it back (`StructField.compiled_decode_from`). Two threads whose first responses come together, as
   uplink and downlink of a device that starts, can so make a decoder that fails for ever with a
   TypeError, "object.__new__(X): X is not a type object": no client of that process reaches a
   broker again. The library reports timeouts, and the cause in its log alone. Here a lock is around
   it, for encoders too, which share the cache.
3. Empty answers. The embedded broker does not hold a fetch until there is a message, and the
   library asks again at once: a reader that waits would use a core. Here it rests for EMPTY_S.
4. New topics. The library waits .1 s before it asks for metadata again, also where it has just
   connected and asks for a topic for the first time: each reader and each first message would take
   so much longer. Kafka's own client asks for new topics at once.
5. Held requests. While messages of some partitions wait to be taken the library asks for those of
   the others. Where nothing comes to these the broker holds the request, for 8 s by a device, and
   until then nothing else is asked for. Here it asks when what came is taken.
6. Moved brokers. The library asks only the brokers of the last answer for metadata: where all have
   moved it never comes back. Here it asks the addresses of the start in between, as Kafka's own
   client does (KIP-899).
7. zstd. The library looks for it in the package `zstandard` alone, which is 24 MB on each device;
   here it is Python's own (streams.contract.zstd).
8. Sockets. The library leaves those of connections that are refused, on which TLS fails, or whose
   client is closed while they are made or have bytes to send, to the garbage collector. Here they
   are closed.
9. Hosts that are down. A start gives all its time to one address, chosen by chance: where a host
   does not answer it fails, though others would. Here the first packet's answer is waited for
   half of the time that is left, and an address comes after those that have failed less often.
10. Topics. The library drops `allow_auto_create_topics` of producers and readers: a broker makes
   the topic that a client asks for, as Kafka's usual settings are. Here it is not asked to.
11. Joins. A member of a group that joins again, since its topics have changed, forgets the join if
   a poll ends between its two answers: it stays without partitions and sends no heartbeats until
   its topics change once more. Here it joins until it has joined.
"""

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import kafka.codec
from kafka import KafkaConsumer
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol.schemas.fields.struct import StructField
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from streams.contract.zstd import zstd

log = logging.getLogger(__name__)

EMPTY_S = 0.1  # after an empty answer that came sooner

skipped: Counter[str] = Counter()  # records that could not be read, by topic

_compiling = threading.RLock()  # a decoder may need another one
_decoder = StructField.compiled_decode_from
_encoder = StructField.compiled_encode_into
_answer = Fetcher._handle_fetch_response
_fetchable = Fetcher._fetchable_partitions
_add_topic = ClusterMetadata.add_topic
_all_topics = KafkaConsumer._fetch_all_topic_metadata
_least_loaded = KafkaConnectionManager.least_loaded_node
_starts = ClusterMetadata.bootstrap_brokers
_connect = KafkaNetSocket.sock_connect
_write = KafkaTCPTransport._write_to_sock
_handshake = KafkaSSLTransport.handshake
_need_rejoin = ConsumerCoordinator.need_rejoin


class Batch(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python has no types
    """The records of one batch; `place` is its (topic, partition)."""

    place: tuple[str, int] = ("?", 0)
    _pos: int

    def __iter__(self) -> Iterator[Any]:
        try:
            self._maybe_uncompress()
            while self._next_record_index < self._num_records:
                yield self.__next__()
        except Exception as exc:  # a codec that is missing, or bytes that are no records
            self._skip_rest(exc)

    def _skip_rest(self, exc: Exception) -> None:
        topic, partition = self.place
        left = self._num_records - self._next_record_index
        skipped[topic] += left
        log.error(
            "%s partition %d: %d records from offset %d to %d cannot be read and are skipped: %s",
            topic, partition, left, self.base_offset + self._next_record_index, self.last_offset,
            exc,
        )  # fmt: skip

    def _read_msg(self, *given: Any) -> Any:
        begin: int = self._pos
        try:
            return super()._read_msg(*given)
        except UnicodeDecodeError:
            plain_names(self._buffer, begin)
            self._pos = begin
            return super()._read_msg(*given)


def plain_names(buffer: bytearray, at: int) -> None:
    """Replace what is no ASCII by "?" in those header names of the record at `at` that are no
    UTF-8."""
    _, at = decode_varint(buffer, at)
    for _ in range(3):  # attributes, timestamp, offset
        _, at = decode_varint(buffer, at)
    for _ in range(2):  # key, value
        size, at = decode_varint(buffer, at)
        at += max(size, 0)
    count, at = decode_varint(buffer, at)
    for _ in range(count):
        size, at = decode_varint(buffer, at)
        name = bytes(buffer[at : at + size])
        try:
            name.decode()
        except UnicodeDecodeError:
            buffer[at : at + size] = bytes(b if b < 0x80 else ord("?") for b in name)
        at += size
        size, at = decode_varint(buffer, at)
        at += max(size, 0)


class _Placed:
    """Batches that know their place."""

    def __init__(self, records: Any, place: tuple[str, int]) -> None:
        self._records, self._place = records, place

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if isinstance(batch, Batch):
            batch.place = self._place
        return batch


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    def _unpack_records(self, tp: Any, records: Any, *given: Any) -> Any:
        return super()._unpack_records(tp, _Placed(records, (tp.topic, tp.partition)), *given)


def _compiled_decode_from(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _decoder(self, *given, **named)


def _compiled_encode_into(self: Any, *given: Any, **named: Any) -> Any:
    with _compiling:
        return _encoder(self, *given, **named)


def _handle_fetch_response(self: Any, node: int, offsets: Any, sent_s: float, found: Any) -> None:
    _answer(self, node, offsets, sent_s, found)
    parts = (part for topic in found.responses for part in topic.partitions)
    soon = (now := time.monotonic()) - sent_s < EMPTY_S / 2
    if soon and not any(part.records or part.error_code for part in parts):
        self.rests_until = now + EMPTY_S


def _fetchable_partitions(self: Any) -> Any:
    """Return none while messages wait to be taken, and none while it rests: for so long a consumer
    that waits for nothing sleeps, too."""
    if self._completed_fetches or self._next_partition_records:
        return []
    rests = time.monotonic() < getattr(self, "rests_until", 0.0) and not self.in_flight_fetches()
    return [] if rests else _fetchable(self)


def add_topic(self: Any, topic: str) -> Any:
    if topic not in self._topics:
        self._last_refresh_ms = 0.0
    return _add_topic(self, topic)


def _fetch_all_topic_metadata(self: Any) -> None:
    self._cluster._last_refresh_ms = 0.0
    _all_topics(self)


def least_loaded_node(self: Any) -> Any:
    """Return the node that the library chooses; while it waits for all, one of the start's."""
    if (found := _least_loaded(self)) is not None:
        return found
    nodes = [broker.node_id for broker in _starts(self.cluster)]
    free = [node for node in nodes if self.connection_delay(node) == 0]
    return random.choice(free) if free else None


def bootstrap_brokers(self: Any) -> Any:
    """Return the addresses of the start that have failed least often since they answered."""
    found = _starts(self)
    failures = [self._manager._backoff.get(broker.node_id, (0,))[0] for broker in found]
    return [broker for broker, n in zip(found, failures, strict=True) if n == min(failures)]


@contextlib.contextmanager
def _closing_what_fails(sock: Any) -> Iterator[None]:
    """Also where the waiting ends because its client is closed (GeneratorExit)."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


async def sock_connect(
    self: Any, net: Any, sock: Any, address: Any, timeout_at: float | None = None
) -> Any:
    if timeout_at is not None:
        timeout_at = (timeout_at + time.monotonic()) / 2
    with _closing_what_fails(sock):
        return await _connect(self, net, sock, address, timeout_at=timeout_at)


async def _write_to_sock(self: Any) -> None:
    with _closing_what_fails(self._sock):
        await _write(self)


async def handshake(self: Any) -> None:
    with _closing_what_fails(self._sock):
        await _handshake(self)


def need_rejoin(self: Any) -> Any:
    return self.rejoining or _need_rejoin(self)


class _Compressor:
    compress = staticmethod(zstd.compress)


class _Decompressor:
    @staticmethod
    def stream_reader(source: IO[bytes], *, read_across_frames: bool) -> Any:
        assert read_across_frames  # what a ZstdFile does
        return zstd.open(source)


class Zstandard:
    """As much of the package `zstandard` as kafka-python uses."""

    ZstdCompressor = _Compressor
    ZstdDecompressor = _Decompressor


def install() -> None:
    """Let all clients of this process read, compile and compress as above."""
    kafka.codec.zstd = Zstandard
    memory_records.DefaultRecordBatch = Batch
    Fetcher.PartitionRecords = _PartitionRecords
    Fetcher._handle_fetch_response = _handle_fetch_response
    Fetcher._fetchable_partitions = _fetchable_partitions
    ClusterMetadata.DEFAULT_CONFIG["allow_auto_create_topics"] = False
    ClusterMetadata.add_topic = add_topic
    KafkaConsumer._fetch_all_topic_metadata = _fetch_all_topic_metadata
    ClusterMetadata.bootstrap_brokers = bootstrap_brokers
    KafkaConnectionManager.least_loaded_node = least_loaded_node
    KafkaNetSocket.sock_connect = sock_connect
    KafkaTCPTransport._write_to_sock = _write_to_sock
    KafkaSSLTransport.handshake = handshake
    ConsumerCoordinator.need_rejoin = need_rejoin
    StructField.compiled_decode_from = _compiled_decode_from
    StructField.compiled_encode_into = _compiled_encode_into
