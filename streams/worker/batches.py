"""Reading of record batches that no message can stop, for aiokafka; see streams.kafka.batches.

aiokafka's parser is compiled and cannot be changed. Where it fails in a batch, the rest of the
batch is read by the other one.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

from streams.kafka.batches import Batch

OVERHEAD = struct.Struct(">qi")  # base offset, length of what follows


class _Batch:
    def __init__(self, batch: Any, data: memoryview, place: tuple[str, int]) -> None:
        self._batch, self._data, self._place = batch, data, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        records = iter(self._batch)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception:  # a header's name, or what the other parser reports
                break
            read += 1
            yield record
        slow = Batch(self._data)
        slow.place = self._place
        yield from islice(slow, read, None)


class _Records:
    """The batches of one fetched partition."""

    place = ("?", 0)

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._records = memoryview(data), 0, MemoryRecords(data)

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        begin = self._at
        _, length = OVERHEAD.unpack_from(self._data, begin)
        self._at = begin + OVERHEAD.size + length
        return _Batch(self._records.next_batch(), self._data[begin : self._at], self.place)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # it has no types
    def __init__(self, tp: Any, records: Any, *given: Any) -> None:
        records.place = tp.topic, tp.partition
        super().__init__(tp, records, *given)


def install() -> None:
    """Let aiokafka's consumers read batches as above."""
    fetcher.MemoryRecords = _Records
    fetcher.PartitionRecords = _PartitionRecords
