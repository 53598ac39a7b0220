"""The worker's job in Quix Streams: `python -m tests.bench.streams.quix_app PLAN FOLDER`.

As its documentation has it: `apply(expand=True)` for a message of many rows, `set_timestamp` for
event time, `tumbling_window(...).collect().final()` for the rows of a closed window, and the file
sink with Parquet. All settings are the defaults: state in RocksDB with changelog topics, a
checkpoint each 5 s.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from quixstreams import Application
from quixstreams.sinks.base import SinkBatch
from quixstreams.sinks.community.file.formats import ParquetFormat
from quixstreams.sinks.community.file.local import LocalFileSink

from tests.bench.meter import Meter
from tests.bench.streams.plan import Plan
from tests.bench.streams.scored import Row, plan_teacher, rows_of, score


class TimedSink(LocalFileSink):
    """The file sink; the clock stops at its last file."""

    def __init__(self, meter: Meter) -> None:
        # It takes no path with a hyphen, as folders of ours may have.
        super().__init__(directory="rows", format=ParquetFormat())
        self.rows = 0
        self._meter = meter

    def write(self, batch: SinkBatch) -> None:
        super().write(batch)
        self.rows += batch.size
        self._meter.lap()


def run(plan: Plan, folder: Path) -> None:
    task, teacher, meter, name = plan.load_task(), plan_teacher(plan), Meter(), plan.topic
    os.chdir(folder)  # from here on a task that is named by its path is not found

    def expand(value: bytes, key: bytes, _timestamp: int, headers: Any) -> list[Row]:
        meter.begin()
        rows = rows_of(task, key, value, headers)
        return [{**row, "segment": row["segment"].tolist()} for row in rows]  # state is JSON

    def scored(window: dict[str, Any]) -> list[Row]:
        return score(task, teacher, window["start"] * 1000, window["value"])

    app = Application(
        broker_address=plan.bootstrap,
        consumer_group=f"quix-{folder.name}",
        auto_offset_reset="earliest",
        state_dir="state",
        loglevel="WARNING",
    )
    topic = app.topic(name, key_deserializer="bytes", value_deserializer="bytes")
    sink = TimedSink(meter)
    frame = app.dataframe(topic).apply(expand, expand=True, metadata=True)
    frame = frame.set_timestamp(lambda row, _key, _timestamp, _headers: row["time"] // 1000)
    windows = frame.tumbling_window(
        timedelta(seconds=task.window_s), grace_ms=timedelta(seconds=task.lateness_s)
    )
    frame = windows.collect().final(closing_strategy="key").apply(scored, expand=True)
    frame.sink(sink)
    app.run(count=plan.closed_rows, collect=False, timeout=20)
    meter.tell(sink.rows)


if __name__ == "__main__":
    run(Plan.from_argv(), Path(sys.argv[2]))
