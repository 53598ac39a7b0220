"""Labels of stored events beside a year of history: `python -m benchmarks.late_labels`.

    none     a million labels of which none has its event
    scattered  100,000 labels of events all over the year

The store has one partition with 10,000 events a day of 1,000 devices, named by `event_id`, in
windows of an hour. Broker and flushes are this process's: measured are the looks, what of a flush
they take, and the memory that they add.
"""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.frame import MB, Bench, Cell, main
from streams.contract.task import Tumbling, load_task
from streams.worker.commit.label_revisions import LabelRevisions
from streams.worker.commit.messages import Outgoing
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import LABELS, SCORES, TABLES, label_schema
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.rows import DAY_US, store_schema

DAYS, A_DAY, DEVICES, FLUSH = 365, 10_000, 1000, 10_000
START_US, HOUR_US = 19_700 * DAY_US, 3_600_000_000
TASK = replace(load_task("streams.tasks.har:task"), window=Tumbling(3600))


def fill(store: DeltaStore, days: int) -> None:
    dice, n = np.random.default_rng(1), A_DAY
    for day in range(days):
        times = np.sort(START_US + day * DAY_US + dice.integers(0, DAY_US, n))
        flat = pa.array(dice.normal(size=TASK.outputs * n).astype(np.float32))
        outputs = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * TASK.outputs, flat)
        columns = {
            "device": [_device(day * n + i) for i in range(n)], "epoch": ["e"] * n,
            "seq": range(day * n, day * n + n), "time": pa.array(times),
            "event_id": [f"order-{day * n + i:09d}" for i in range(n)],
            "model": ["1-aaaaaaaa"] * n, "window": pa.array(times // HOUR_US * HOUR_US),
            "revision": [0] * n, "outputs": outputs, "teacher": outputs, "agrees": [True] * n,
            "teacher_model": ["1-t"] * n, "label": [None] * n, "correct": [None] * n,
            "partition": [0] * n, "commit": [day + 1] * n, "drift": [None] * n,
            "day": [int(times[0] // DAY_US)] * n,
        }  # fmt: skip
        rows = pa.table([columns[name] for name in store_schema().names], schema=store_schema())
        store.commit(SCORES, rows, {0: day + 1})


def _device(event: int) -> str:
    return f"d{event * 7919 % DEVICES}"


def label(store: DeltaStore, events: Sequence[int], prefix: str) -> int:
    """Store a label of each event, FLUSH in a commit; return the last commit."""
    first = last = store.last_commit(LABELS, 0)
    for begin in range(0, len(events), FLUSH):
        own = events[begin : begin + FLUSH]
        rows = [
            {"device": _device(event), "epoch": "kafka-0", "number": first * FLUSH + begin + i,
             "label": [1.0], "told": 1, "source": "external", "event_id": f"{prefix}-{event:09d}",
             "partition": 0, "commit": last + 1, "day": 20_000}
            for i, event in enumerate(own)
        ]  # fmt: skip
        store.commit(LABELS, pa.Table.from_pylist(rows, label_schema()), {0: last + 1})
        last += 1
    return last


class Sink:
    """The broker."""

    messages = 0

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        self.messages += len(messages)

    async def acknowledge(self, messages: Sequence[object]) -> None: ...

    async def commit_offsets(self) -> None: ...


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def call(function: Callable[..., Any], *given: Any) -> Any:
    return await asyncio.to_thread(function, *given)


async def joined(store: DeltaStore) -> tuple[float, float, list[float], int]:
    """Return seconds and CPU seconds until all is joined, what flushes took, and the messages."""
    position, sink = StorePosition(Counter({t: store.last_commit(t, 0) for t in TABLES})), Sink()
    called: Callable[..., Awaitable[Any]] = call
    late = LabelRevisions(TASK, store, sink, called, lambda: time.time_ns() // 1000)
    await late.assigned(0, position)
    began, cpu, took = time.monotonic(), time.process_time(), list[float]()
    while late.joined[0].labels != position.commits[LABELS]:
        at = time.monotonic()
        await late.revise({0: position})
        took.append(time.monotonic() - at)
        await asyncio.sleep(0.05)
    return time.monotonic() - began, time.process_time() - cpu, took, sink.messages


def measure(bench: Bench) -> None:
    store, days = DeltaStore(Path(bench.place("store"))), bench.size(DAYS, 30)
    fill(store, days)
    dice, many = np.random.default_rng(2), bench.size(1_000_000, 100_000)
    parts: dict[str, Callable[[], int]] = {
        f"{many:,} without events": lambda: label(store, range(many), "never"),
        "100,000 all over the year": lambda: label(
            store, dice.choice(days * A_DAY, 100_000, replace=False).tolist(), "order"
        ),
    }
    rows: list[list[Cell]] = []
    for name, send in parts.items():
        send()
        before, peak, ended = resident(), [0], threading.Event()

        def watch(peak: list[int] = peak, ended: threading.Event = ended) -> None:
            while not ended.wait(0.02):
                peak[0] = max(peak[0], resident())

        threading.Thread(target=watch, daemon=True).start()
        seconds, cpu_s, took, messages = asyncio.run(joined(store))
        ended.set()
        more = (peak[0] - before) / MB
        rows.append([name, seconds, cpu_s, max(took), messages, before / MB, more])
        bench.goal(f"{name}: a flush waits, s", max(took), at_most=1.0)
        bench.goal(f"{name}: memory added, MB", more, at_most=400.0)
    columns = ["labels", "s until joined", "CPU s", "longest of a flush, s", "reports"]
    columns += ["MB before", "MB added at most"]
    bench.table(f"Late labels beside {days * A_DAY:,} events", columns, rows)


if __name__ == "__main__":
    main("late_labels", {"labels": measure}, ("duckdb", "deltalake", "pyarrow"))
