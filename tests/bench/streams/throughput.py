"""Rows per second: the worker, its limit, other frameworks, two workers."""

import subprocess
from collections.abc import Callable
from functools import partial

from tests.bench.meter import Measure
from tests.bench.report import Cell, Goal, Results, Table
from tests.bench.streams.bench import ContenderFailed
from tests.bench.streams.plan import Plan
from tests.bench.streams.subject import (
    COLUMNS,
    DEVICES,
    HOP_US,
    PER_MESSAGE,
    TITLES,
    Bench,
)
from tests.bench.streams.tasks import HAR

# glibc's allocator keeps what it has had: else it is luck whether each forward pass maps its memory
# anew, which takes up to a third of the limit's time.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}


def throughput(bench: Bench, results: Results) -> None:
    """The worker against the limit, with HAR's teacher and with one that costs nothing."""
    for task, title in TITLES.items():
        plan = bench.backlog(task, bench.size.rounds)
        limit, overlapped, ours = bench.medians(
            partial(bench.stage.contend, "limit", plan, environ=KEEP),
            partial(bench.stage.contend, "limit", plan, "overlapped", environ=KEEP),
            partial(bench.drained, plan),
        )
        best = limit.measure.rows_per_s
        bench.rates[task, "worker"], bench.rates[task, "limit"] = ours.measure.rows_per_s, best
        rows = [
            limit.cells("limit: one aiokafka loop", best),
            overlapped.cells("limit, scoring overlapped with reading", best),
            ours.cells("worker", best),
        ]
        text = (
            f"{plan.rows:,} rows of HAR's shape (6 x 128 float32) of {DEVICES} devices, "
            f"{PER_MESSAGE} a message, {plan.windows():,} windows, {plan.partitions} partitions. "
            f"The median of {bench.size.repeats}."
        )
        results.tables.append(Table(f"The worker and its limit, {title}", text, COLUMNS, rows))
        wanted = 0.7 if task == HAR else None
        results.goals += [
            Goal(f"worker / limit, {title}", ours.measure.rows_per_s / best, at_least=wanted)
        ]


def others(bench: Bench, results: Results) -> None:
    """The same job in other frameworks, and Kafka-ML's way."""
    for task in bench.size.teachers:
        title = TITLES[task]
        plan = bench.backlog(task, bench.size.rounds)
        if (task, "worker") not in bench.rates:
            bench.rates[task, "worker"] = bench.drain(plan).measure.rows_per_s
        single = bench.stage.plan(
            task,
            devices=1,
            rounds=bench.size.single,
            per_message=1,
            hop_us=HOP_US,
            single=True,
            partitions=1,
        )
        bench.stage.preload(single)
        rows: list[list[Cell]] = []
        for name, module, options, least in RIVALS:
            ratio = _against(bench, single if module == "kafka_ml" else plan, module, options)
            cells, times = ratio(name, bench.rates[task, "worker"])
            rows.append(cells)
            if times is not None:
                results.goals.append(Goal(f"worker / {name}, {title}", times, at_least=least))
        text = (
            f"The same {plan.rows:,} rows; {bench.size.single:,} in Kafka-ML's way. The worker has "
            f"{bench.rates[task, 'worker']:,.0f} rows/s. Quix Streams keeps windows in RocksDB "
            "and on changelog topics; Bytewax keeps them in memory, and with recovery takes a "
            "snapshot each 10 s. Its watermark also moves with the clock: rows of a device that "
            "waits its turn in a backlog can be late, and are lost. Neither drops events that come "
            "twice, publishes the scores, or counts drift, all of which the worker does."
        )
        columns = ["", "rows/s", "worker is faster by", *COLUMNS[3:]]
        results.tables.append(Table(f"The same job elsewhere, {title}", text, columns, rows))


# name, module, options, how many times faster the worker is to be
RIVALS: list[tuple[str, str, tuple[str, ...], float | None]] = [
    ("Kafka-ML's way (kafka-python)", "kafka_ml", (), 20.0),
    ("Kafka-ML's way (confluent-kafka)", "kafka_ml", ("confluent",), None),
    ("Quix Streams", "quix_app", (), 2.0),
    ("Bytewax", "wax_flow", (), 2.0),
    ("Bytewax with recovery", "wax_flow", ("recovery",), 2.0),
]


def _against(
    bench: Bench, plan: Plan, module: str, options: tuple[str, ...]
) -> Callable[[str, float], tuple[list[Cell], float | None]]:
    """Run a rival; its cells and how many times faster the worker is, or the error."""
    python = bench.quix if module == "quix_app" else None

    def measured() -> Measure:
        arguments = options
        if module != "kafka_ml":
            folder = bench.stage.new_folder(module)
            folder.mkdir(parents=True)
            arguments = (str(folder), *options)
        return bench.stage.contend(module, plan, *arguments, python=python)

    def cells(name: str, worker_rate: float) -> tuple[list[Cell], float | None]:
        try:
            run = bench.once(measured)
        except (ContenderFailed, subprocess.TimeoutExpired, OSError) as exc:
            reason = str(exc).strip().splitlines()[-1][:200]
            return [name, f"failed: {reason}", *[None] * (len(COLUMNS) - 2)], None
        found = run.cells(name, None)
        times = worker_rate / run.measure.rows_per_s
        return [*found[:2], times, *found[3:]], times

    return cells


def workers(bench: Bench, results: Results) -> None:
    """One and two workers on the same backlog."""
    plan = bench.backlog(HAR, bench.size.rounds)
    runs = [(n, bench.drain(plan, n)) for n in (1, 2)]
    first = runs[0][1].measure.rows_per_s
    rows = [run.cells(f"{n}", first) for n, run in runs]
    columns = ["workers", "rows/s", "to one", *COLUMNS[3:]]
    text = (
        f"{plan.rows:,} rows with HAR's teacher, {plan.partitions} partitions. The clock starts "
        "when each worker has its partitions; what is in the store by then does not count. Two "
        "workers and the broker share two cores."
    )
    results.tables.append(Table("Two workers", text, columns, rows))
