"""The worker's job in Bytewax: `python -m tests.bench.streams.wax_flow PLAN FOLDER [recovery]`.

As its documentation has it: the Kafka input operator, `flat_map` for a message of many rows,
`collect_window` over an `EventClock` with tumbling windows, and a custom sink. Rows are collected
into batches as long as the worker's flush (`op.collect`), one Parquet file each. Without a recovery
store, which is the default, a crash loses what is in open windows; with one, a snapshot of them is
taken every 10 s, which is the default too.
"""

import itertools
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower, collect_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from tests.bench.meter import Meter
from tests.bench.streams.plan import Plan
from tests.bench.streams.scored import Row, plan_teacher, rows_of, score

FLUSH = timedelta(seconds=0.3)
MANY = 100_000


class ParquetPart(StatelessSinkPartition[list[Row]]):
    """Writes one file a batch; the clock stops at the last one."""

    def __init__(self, sink: "ParquetSink") -> None:
        self._sink = sink

    def write_batch(self, items: list[list[Row]]) -> None:
        for rows in items:
            name = f"{next(self._sink.numbers):06d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), self._sink.folder / name)
            self._sink.rows += len(rows)
            self._sink.meter.lap()


class ParquetSink(DynamicSink[list[Row]]):
    def __init__(self, folder: Path, meter: Meter) -> None:
        folder.mkdir(parents=True)
        self.folder, self.meter = folder, meter
        self.numbers, self.rows = itertools.count(), 0

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ParquetPart:
        return ParquetPart(self)


def flow(plan: Plan, sink: ParquetSink) -> Dataflow:
    task, teacher = plan.load_task(), plan_teacher(plan)

    def expand(message: KafkaSourceMessage[bytes | None, bytes | None]) -> list[Row]:
        sink.meter.begin()
        return rows_of(task, message.key, message.value, message.headers)

    def scored(closed: tuple[str, tuple[int, list[Row]]]) -> list[Row]:
        number, rows = closed[1]
        return score(task, teacher, number * task.window_us, rows)

    graph = Dataflow("bench")
    source = kop.input("events", graph, brokers=[plan.bootstrap], topics=[plan.topic], tail=False)
    rows = op.flat_map("rows", source.oks, expand)
    keyed = op.key_on("device", rows, lambda row: row["device"])
    clock: EventClock[Row] = EventClock(
        ts_getter=lambda row: datetime.fromtimestamp(row["time"] / 1e6, UTC),
        wait_for_system_duration=timedelta(seconds=task.lateness_s),
    )
    windower = TumblingWindower(
        length=timedelta(seconds=task.window_s), align_to=datetime(1970, 1, 1, tzinfo=UTC)
    )
    windows = collect_window("window", keyed, clock, windower)
    done = op.flat_map("score", windows.down, scored)
    one = op.key_on("all", done, lambda _row: "all")
    batches = op.collect("batch", one, timeout=FLUSH, max_size=MANY)
    op.output("store", op.key_rm("rows-only", batches), sink)
    return graph


def main() -> None:
    plan, folder = Plan.from_argv(), Path(sys.argv[2])
    sink, recovery = ParquetSink(folder / "rows", Meter()), None
    if "recovery" in sys.argv[3:]:
        (folder / "recovery").mkdir()
        init_db_dir(folder / "recovery", 1)
        recovery = RecoveryConfig(folder / "recovery", timedelta(0))
    cli_main(
        flow(plan, sink),
        workers_per_process=1,
        epoch_interval=timedelta(seconds=10),
        recovery_config=recovery,
    )
    sink.meter.tell(sink.rows)


if __name__ == "__main__":
    main()
