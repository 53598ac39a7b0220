"""The limit: consume, decode, one teacher; no windows, no store, no output.

`python -m tests.bench.streams.contenders.limit PLAN [overlapped [SHARE OF]]`. The client has the
settings that Faust gives the worker's. Messages are scored in calls of as many rows as the
worker's. In its plain form one thread does one thing after the other; overlapped, the teacher has
as many threads as the worker's, and scores while the next messages are read and decoded. With a
share, 0 or 1 of 2, it reads only each second partition: it says that it is ready, and begins when
it is sent a line.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiokafka
import numpy as np

from streams.contract.events.batches import float_rows
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.learning.teacher import ROWS_PER_CALL, Teacher, TeacherFailed
from streams.worker.settings import default_threads
from tests.bench.meter import Meter
from tests.bench.streams.contenders.pieces import plan_teacher
from tests.bench.streams.feed.plan import Plan


@dataclass(frozen=True)
class Share:
    """Which of the partitions are read: each `of`-th from `index` on."""

    index: int = 0
    of: int = 1

    async def take(self, plan: Plan, messages: aiokafka.AIOKafkaConsumer) -> int:
        """Take the partitions; return how many messages they hold."""
        numbers = range(self.index, plan.partitions, self.of)
        mine = [aiokafka.TopicPartition(plan.topic, number) for number in numbers]
        messages.assign(mine)
        return sum((await messages.end_offsets(mine)).values())


def consumer(plan: Plan) -> aiokafka.AIOKafkaConsumer:
    return aiokafka.AIOKafkaConsumer(
        bootstrap_servers=plan.bootstrap,
        group_id=f"limit-{os.getpid()}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=500,
        max_partition_fetch_bytes=1024**2,
        fetch_max_wait_ms=1500,
        check_crcs=True,
    )


async def batches(
    task: Task, messages: aiokafka.AIOKafkaConsumer, left: int, meter: Meter, calls: int
) -> AsyncIterator[list[np.ndarray]]:
    """The segments of `left` messages, of so many at a time as some calls of the teacher take,
    (rows, channels, samples) each."""
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
            if rows + len(segments) > calls * ROWS_PER_CALL or not left:
                yield waiting
                waiting, rows = [], 0


async def run(plan: Plan, task: Task, teacher: Teacher, share: Share, *, overlapped: bool) -> None:
    meter, messages, done = Meter(), consumer(plan), 0
    await messages.start()
    left = await share.take(plan, messages)
    if share.of > 1:
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
    running: asyncio.Task[int] | None = None
    calls = default_threads() if overlapped else 1
    async for windows in batches(task, messages, left, meter, calls):
        if not overlapped:
            done += score(teacher, windows)
            await asyncio.sleep(0)  # the client's own tasks have their turn
            continue
        done += await running if running else 0
        running = asyncio.create_task(asyncio.to_thread(score, teacher, windows))
    done += await running if running else 0
    meter.lap()
    await messages.stop()
    meter.tell(done)


def score(teacher: Teacher, windows: Sequence[np.ndarray]) -> int:
    """How many rows were scored."""
    results = teacher.score(windows)
    assert not any(isinstance(result, TeacherFailed) for result in results)
    return sum(len(window) for window in windows)


def main() -> None:
    plan = Plan.from_argv()
    overlapped = "overlapped" in sys.argv[2:]
    teacher = plan_teacher(plan, default_threads() if overlapped else 1)
    share = Share(*map(int, sys.argv[3:5]))
    asyncio.run(run(plan, plan.load_task(), teacher, share, overlapped=overlapped))


if __name__ == "__main__":
    main()
