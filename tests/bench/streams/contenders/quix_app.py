"""The worker's job in Quix Streams.

`python -m tests.bench.streams.contenders.quix_app PLAN FOLDER [whole]`

As its documentation has it: `apply(expand=True)` for a message of many events, `set_timestamp` for
event time, `tumbling_window(...).collect().final()` for what a closed window holds, and a batching
sink of one's own (`BatchingSink.write`), which takes all windows since the last checkpoint. State
is bytes: `RocksDBOptions(dumps=pickle.dumps, loads=pickle.loads)`, and its items are Arrow. In the
whole job a stateful `apply` drops events that come twice, and a checkpoint is made as often as the
worker flushes, so that windows are stored as soon. The rest is the defaults: RocksDB with changelog
topics, a checkpoint each 5 s.
"""

import pickle
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from quixstreams import Application
from quixstreams.dataframe import StreamingDataFrame
from quixstreams.sinks.base import BatchingSink, SinkBatch
from quixstreams.state.rocksdb.options import RocksDBOptions

from streams.contract.task import Task
from tests.bench.meter import Meter
from tests.bench.streams.contenders.outlet import Outlet
from tests.bench.streams.contenders.pieces import Piece, pieces_of
from tests.bench.streams.feed.plan import Plan

CHECKPOINT_S, FLUSH_S = 5.0, 0.3

Item = tuple[int, bytes]  # the newest event time, us, and an encoded piece


class WindowSink(BatchingSink):  # type: ignore[misc,unused-ignore]  # has types where it is installed
    """Hands the windows of a checkpoint over."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self._outlet = outlet

    def write(self, batch: SinkBatch) -> None:
        self._outlet.put([[Piece.decode(data) for data in item.value] for item in batch])


def items(frame: StreamingDataFrame, task: Task, meter: Meter, *, whole: bool) -> Any:
    """Return the frame with an item a piece; in the whole job without events that come twice."""

    def expand(value: bytes, key: bytes, _timestamp: int, headers: Any) -> list[Item]:
        meter.begin()
        return [(p.newest, p.encode()) for p in pieces_of(task, key, value, headers)]

    def fresh(value: bytes, key: bytes, _timestamp: int, headers: Any, state: Any) -> list[Item]:
        meter.begin()
        pieces = pieces_of(task, key, value, headers)
        seen = state.get(pieces[0].epoch, default=0)
        kept = [p for piece in pieces if (p := piece.since(seen)) is not None]
        if kept:
            state.set(pieces[0].epoch, kept[-1].next_seq)
        return [(p.newest, p.encode()) for p in kept]

    if whole:
        return frame.apply(fresh, expand=True, metadata=True, stateful=True)
    return frame.apply(expand, expand=True, metadata=True)


def run(plan: Plan, folder: Path, *, whole: bool) -> None:
    task, meter = plan.load_task(), Meter()
    outlet = Outlet(plan, folder, meter, whole=whole)
    app = Application(
        broker_address=plan.bootstrap,
        consumer_group=f"quix-{folder.name}",
        auto_offset_reset="earliest",
        commit_interval=FLUSH_S if whole else CHECKPOINT_S,
        state_dir=folder / "state",
        rocksdb_options=RocksDBOptions(dumps=pickle.dumps, loads=pickle.loads),
        loglevel="WARNING",
    )
    topic = app.topic(plan.topic, key_deserializer="bytes", value_deserializer="bytes")
    frame = items(app.dataframe(topic), task, meter, whole=whole)
    frame = frame.set_timestamp(lambda item, _key, _timestamp, _headers: item[0] // 1000)
    windows = frame.apply(lambda item: item[1]).tumbling_window(
        timedelta(seconds=task.window_s), grace_ms=timedelta(seconds=task.lateness_s)
    )
    closed = windows.collect().final(closing_strategy="key").apply(lambda window: window["value"])
    closed.sink(WindowSink(outlet))
    app.run(count=plan.windows(), collect=False, timeout=20)
    outlet.tell()


if __name__ == "__main__":
    run(Plan.from_argv(), Path(sys.argv[2]), whole="whole" in sys.argv[3:])
