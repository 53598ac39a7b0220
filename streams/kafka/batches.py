"""Reading of record batches that no message can stop.

Kafka's protocol says that a header's name is UTF-8; brokers do not check it. kafka-python and
aiokafka decode names while they parse a batch, and repeat a batch that they cannot parse for ever:
one message would stop each reader of its topic. Here bytes of a name that are no UTF-8 are read as
"?", and the message is one as any other, for its reader to judge. Records that cannot be read at
all, as with a codec that is not installed, are skipped: logged with topic, partition and offsets,
and counted in `skipped`.

`install` puts this in place of kafka-python's batches; streams.worker.faust_patches does so for
aiokafka.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

log = logging.getLogger(__name__)

skipped: Counter[str] = Counter()  # records that could not be read, by topic


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


def install() -> None:
    """Let kafka-python's consumers read batches as above."""
    memory_records.DefaultRecordBatch = Batch
    Fetcher.PartitionRecords = _PartitionRecords
