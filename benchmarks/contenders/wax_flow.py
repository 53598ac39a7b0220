"""The worker's job in Bytewax: `python -m benchmarks.contenders.wax_flow PLAN FOLDER [whole]`.

As its documentation has it: the Kafka input operator, `flat_map` for a message of many events,
`collect_window` over an `EventClock` with tumbling windows, `collect` for batches of windows as
long as the worker's flush, and a sink of one's own. The short job keeps windows in memory, its
default; the whole job has a recovery store with a snapshot every 10 s, and drops events that come
twice. The watermark also moves with the clock: in a backlog events can be late, and are lost.
"""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower, collect_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from benchmarks.contenders.outlet import Meter, Outlet, Piece, pieces_of
from benchmarks.support.backlog import Plan

FLUSH, MANY = timedelta(seconds=0.3), 100_000
Windows = list[list[Piece]]
Seen = dict[str, int]  # the next seq of each epoch


class WindowPart(StatelessSinkPartition[Windows]):
    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write_batch(self, items: list[Windows]) -> None:
        for windows in items:
            self._outlet.put(windows)


class WindowSink(DynamicSink[Windows]):
    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def build(self, step_id: str, worker_index: int, worker_count: int) -> WindowPart:
        return WindowPart(self._outlet)


def fresh(seen: Seen | None, piece: Piece) -> tuple[Seen, Iterable[Piece]]:
    """Drop what came before."""
    seen = {} if seen is None else seen
    kept = piece.since(seen.get(piece.epoch, 0))
    if kept is None:
        return seen, ()
    seen[piece.epoch] = kept.next_seq
    return seen, (kept,)


def flow(plan: Plan, outlet: Outlet, meter: Meter, *, whole: bool) -> Dataflow:
    task = plan.load_task()

    def expand(message: KafkaSourceMessage[bytes | None, bytes | None]) -> list[Piece]:
        meter.begin()
        return pieces_of(task, message.key, message.value, message.headers)

    graph = Dataflow("bench")
    source = kop.input("events", graph, brokers=[plan.bootstrap], topics=[plan.topic], tail=False)
    pieces = op.flat_map("pieces", source.oks, expand)
    keyed = op.key_on("device", pieces, lambda piece: piece.device)
    if whole:
        keyed = op.stateful_flat_map("fresh", keyed, fresh)
    clock: EventClock[Piece] = EventClock(
        ts_getter=lambda piece: datetime.fromtimestamp(piece.newest / 1e6, UTC),
        wait_for_system_duration=timedelta(seconds=task.lateness_s),
    )
    windower = TumblingWindower(
        length=timedelta(seconds=task.window.longest_s), align_to=datetime(1970, 1, 1, tzinfo=UTC)
    )
    windows = collect_window("window", keyed, clock, windower)
    closed = op.map("closed", windows.down, lambda keyed_window: keyed_window[1][1])
    one = op.key_on("all", closed, lambda _window: "all")
    batches = op.collect("batch", one, timeout=FLUSH, max_size=MANY)
    op.output("outlet", op.key_rm("windows-only", batches), WindowSink(outlet))
    return graph


def main() -> None:
    plan, folder, whole = Plan.decode(sys.argv[1]), Path(sys.argv[2]), "whole" in sys.argv[3:]
    meter, recovery = Meter(), None
    outlet = Outlet(plan, folder, meter, whole=whole)
    if whole:
        (folder / "recovery").mkdir()
        init_db_dir(folder / "recovery", 1)
        recovery = RecoveryConfig(folder / "recovery", timedelta(0))
    cli_main(
        flow(plan, outlet, meter, whole=whole), workers_per_process=1,
        epoch_interval=timedelta(seconds=10), recovery_config=recovery,
    )  # fmt: skip
    outlet.report()


if __name__ == "__main__":
    main()
