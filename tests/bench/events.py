"""`python -m tests.bench.events`: bytes and time of events/2 beside events/1, in one process.

For HAR's task with and without segments and messages of 1, 12 and 512 events: the size of a Kafka
batch for each event, and the CPU time to encode and to decode a message, the least of 15 turns of
20 ms. Values are normal noise, which does not compress; both forms carry the same events.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from kafka.record.default_records import DefaultRecordBatchBuilder

from streams.contract.events.messages import Headers
from streams.contract.events.records import (
    EventBatch,
    decode_event_message,
    encode_events,
    encode_stream,
)
from streams.contract.task import Task
from tests.bench.edge.tasks import predictions, segments
from tests.event_rows import event_rows

TURNS, TURN_S = 15, 0.02
COLUMNS = "upload       events   bytes an event     encode, us      decode, us\n"


def kafka_bytes(key: bytes, value: bytes, headers: Headers) -> int:
    """Return the size of a batch with one message, as a device's producer makes it."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=DefaultRecordBatchBuilder.CODEC_ZSTD, is_transactional=False,
        producer_id=7, producer_epoch=0, base_sequence=5, batch_size=8_000_000,
    )  # fmt: skip
    builder.append(0, 1_764_273_600_000, key, value, headers)
    return len(builder.build())


def sample(task: Task, count: int, first: int = 37) -> EventBatch:
    """Return `count` labelled events, 20 ms from one to the next."""
    numbers = np.random.default_rng(first)
    rows = event_rows(
        task,
        first=first,
        times=1_764_273_600_123_456 + np.arange(count) * 20_017,
        model="12-0a1b2c3d",
        outputs=numbers.normal(0, 3, (count, task.outputs)).astype(np.float32),
        labels=[np.array([3], np.float32)] * count,
        segments=None
        if task.upload == "prediction"
        else numbers.normal(size=(count, *task.segment_shape)).astype(np.float32),
    )
    return EventBatch("phone1", "1764273590000-0a1b2c", first, rows)


def cpu_us(call: Callable[[], object]) -> float:
    """Return the CPU time of a call in microseconds."""
    began = time.perf_counter()
    call()
    calls = max(1, round(TURN_S / (time.perf_counter() - began)))
    least = float("inf")
    for _ in range(TURNS):
        began = time.process_time()
        for _ in range(calls):
            call()
        least = min(least, (time.process_time() - began) / calls)
    return least * 1e6


def row(task: Task, count: int) -> str:
    """Return a line of the table: each figure of events/1, then of events/2."""
    batch = sample(task, count)
    pairs = []
    for encode in (encode_stream, encode_events):
        message = encode(batch, 1)
        encoding = cpu_us(partial(encode, batch, 1))
        decoding = cpu_us(partial(decode_event_message, task, *message))
        pairs.append((kafka_bytes(*message) / count, encoding, decoding))
    figures = (f"{a:6.1f} -> {b:6.1f}" for a, b in zip(*pairs, strict=True))
    return f"{task.upload:10} {count:8}   {'   '.join(figures)}\n"


def main() -> None:
    sys.stdout.write(COLUMNS)
    for task in (predictions, segments):
        for count in (1, 12, 512):
            sys.stdout.write(row(task, count))


if __name__ == "__main__":
    main()
