"""The limit: consume, decode, one teacher; no windows, no store, no output.

`python -m benchmarks.contenders.limit PLAN`. The client has the settings that Faust gives the
worker's, but fetches 1 MiB of a partition at once: with 4 it is half as fast with HAR's teacher.
The teacher has as many threads as the worker's, gets as many rows a call, and scores while the next
messages are read and decoded.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence

import aiokafka
import numpy as np

from benchmarks.contenders.outlet import Meter, teacher_of
from benchmarks.support.backlog import Plan
from streams.contract.events.batches import float_rows
from streams.contract.events.records import EventBatch, decode_event_message
from streams.learning.teacher import ROWS_PER_CALL, Teacher, TeacherFailed
from streams.worker.settings import default_threads


async def batches(
    plan: Plan, messages: aiokafka.AIOKafkaConsumer, meter: Meter
) -> AsyncIterator[list[np.ndarray]]:
    """Yield the segments of as many messages as some calls of the teacher take, (rows, channels,
    samples) each."""
    task, left = plan.load_task(), plan.messages
    waiting, rows = list[np.ndarray](), 0
    width = int(np.prod(task.segment_shape))
    while left:
        polled = await messages.getmany(timeout_ms=1000, max_records=500)
        for message in (m for found in polled.values() for m in found):
            meter.begin()
            record = decode_event_message(task, message.key, message.value, message.headers)
            assert isinstance(record, EventBatch)
            segments = float_rows(record.rows.column("segment"), width)
            waiting.append(segments.reshape(-1, *task.segment_shape))
            left, rows = left - 1, rows + len(segments)
            if rows + len(segments) > default_threads() * ROWS_PER_CALL or not left:
                yield waiting
                waiting, rows = [], 0


def score(teacher: Teacher, windows: Sequence[np.ndarray]) -> int:
    """Return how many rows were scored."""
    results = teacher.score(windows)
    assert not any(isinstance(result, TeacherFailed) for result in results)
    return sum(len(window) for window in windows)


async def run(plan: Plan, teacher: Teacher) -> None:
    meter, done = Meter(), 0
    messages = aiokafka.AIOKafkaConsumer(
        plan.topic, bootstrap_servers=plan.bootstrap, group_id=f"limit-{os.getpid()}",
        enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=500,
        max_partition_fetch_bytes=1024**2, fetch_max_wait_ms=1500, check_crcs=True,
    )  # fmt: skip
    await messages.start()
    running: asyncio.Task[int] | None = None
    async for windows in batches(plan, messages, meter):
        done += await running if running else 0
        running = asyncio.create_task(asyncio.to_thread(score, teacher, windows))
    done += await running if running else 0
    meter.lap()
    await messages.stop()
    meter.report(done)


if __name__ == "__main__":
    given = Plan.decode(sys.argv[1])
    asyncio.run(run(given, teacher_of(given)))
