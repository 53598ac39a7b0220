"""The scoring worker: `python -m benchmarks.worker`.

    throughput  rows/s and CPU a row beside a bare loop and other frameworks, in turns
    kinds       sessions, counts and categories beside tumbling windows of floats, in turns
    delay       from a window's close to its rows in the store

A backlog is on `events` before the clock starts. The clock of the worker runs from when it owns its
partitions until the Delta log has all rows; that of the others from their first message to their
last row. All share the machine with the broker.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.frame import MB, Bench, Cell, Figure, main
from benchmarks.support.backlog import CATEGORIES, COUNTS, HAR, LINEAR, SESSIONS, Plan
from benchmarks.support.processes import module
from benchmarks.support.workers import Log, drain, fill, plan_of, workers

HOP_US = 1_280_000  # of HAR: a row each 1.28 s, 23 or 24 a window
DEVICES = 50
# glibc keeps the memory that it has had: else it is luck whether each forward pass maps its memory
# anew, which takes up to a third of a contender's time. All contenders have it.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
LIMIT, WORKER, TWO = "limit: a loop of aiokafka and the teacher", "worker", "2 workers"
# name, module, options, how many times as fast the worker is to be
RIVALS: list[tuple[str, str, tuple[str, ...], float | None]] = [
    ("Bytewax, short job", "wax_flow", (), 0.8),
    ("Bytewax, whole job", "wax_flow", ("whole",), 1.0),
]
BYTEWAX = importlib.util.find_spec("bytewax") is not None
TITLES = {HAR: "HAR's teacher", LINEAR: "a linear teacher"}


@dataclass(frozen=True)
class Measure:
    rows: int
    wall_s: float
    cpu_s: float
    peak: int

    @property
    def speed(self) -> float:
        return self.rows / self.wall_s


def throughput(bench: Bench) -> None:
    for task, title in TITLES.items():
        plan = plan_of(
            bench, task, devices=DEVICES, rounds=bench.size(28, 20), per_message=64, hop_us=HOP_US
        )
        fill(bench, plan)
        contenders: dict[str, Callable[[], Measure]] = {
            LIMIT: partial(_contend, bench, plan, "limit"),
            WORKER: partial(_drained, bench, plan, 1),
            **({TWO: partial(_drained, bench, plan, 2)} if task == HAR else {}),
        }
        for name, program, options, _ in RIVALS:
            if (BYTEWAX or program != "wax_flow") and (task == HAR or "whole" not in options):
                contenders[name] = partial(_contend, bench, plan, program, *options)
        found, failed = bench.turns(contenders, bench.size(3, 1))
        _report(bench, title, plan, found, failed)


def _report(
    bench: Bench, title: str, plan: Plan, found: dict[str, list[Measure]], failed: dict[str, str]
) -> None:  # fmt: skip
    speed = {name: [one.speed for one in runs] for name, runs in found.items()}
    rows: list[list[Cell]] = []
    for name, runs in found.items():
        if name in failed:
            rows.append([f"{name} failed: {failed[name]}", *[None] * 5])
            continue
        ratio = Figure.ratio(speed[WORKER], speed[name]) if speed[WORKER] else None
        rows.append([
            name, Figure.of(speed[name]), ratio, Figure.of([1e6 * r.cpu_s / r.rows for r in runs]),
            Figure.of([r.peak / MB for r in runs]), runs[0].rows,
        ])  # fmt: skip
    text = (
        f"{plan.rows:,} rows of HAR's shape (6 x 128 float32) of {DEVICES} devices, 64 a message, "
        f"{plan.windows():,} windows, {plan.partitions} partitions. The short job decodes, cuts "
        "windows, scores and writes Parquet; the whole job also drops events that come twice, "
        "commits to Delta and publishes. The worker does all of that, counts drift, revises "
        "windows and fences its commits."
        + ("" if BYTEWAX else " Bytewax is not installed, so it was not measured.")
    )
    columns = ["", "rows/s", "worker is faster by", "CPU µs a row", "peak MB", "rows"]
    bench.table(f"Throughput, {title}", columns, rows, text)
    if not speed[WORKER]:
        raise RuntimeError(failed[WORKER])
    if speed[LIMIT]:
        share = Figure.ratio(speed[WORKER], speed[LIMIT])
        least = 0.7 if title == TITLES[HAR] else 0.6
        bench.goal(f"worker / limit, {title}", share, at_least=least)
    for name, _, _, wanted in RIVALS:
        if speed.get(name):
            ratio = Figure.ratio(speed[WORKER], speed[name])
            bench.goal(f"worker / {name}, {title}", ratio, at_least=wanted)
    if speed.get(TWO):
        bench.goal("2 workers / one", Figure.ratio(speed[TWO], speed[WORKER]), at_least=1.3)


def _contend(bench: Bench, plan: Plan, program: str, *options: str) -> Measure:
    folder = bench.place(program)
    words = [plan.encode(), str(folder), *options]
    return Measure(**module(f"benchmarks.contenders.{program}", *words, env=KEEP))


def _drained(bench: Bench, plan: Plan, count: int) -> Measure:
    found, _ = drain(bench, plan, count, KEEP)
    return Measure(found.rows, found.wall_s, found.cpu_s, found.peak)


def _costs(found: Mapping[str, Sequence[Measure]]) -> list[list[Cell]]:
    return [
        [
            name, Figure.of([r.speed for r in runs]),
            Figure.of([1e6 * r.cpu_s / r.rows for r in runs]),
        ]
        for name, runs in found.items()
    ]  # fmt: skip


def kinds(bench: Bench) -> None:
    """Each turn fills the topics of one task anew."""

    def filled(task: str) -> Measure:
        plan = plan_of(
            bench, task, devices=DEVICES, rounds=bench.size(28, 20), per_message=64, hop_us=HOP_US
        )
        fill(bench, plan)
        return _drained(bench, plan, 1)

    tasks = {"tumbling": LINEAR, "sessions": SESSIONS, "counts": COUNTS, "categories": CATEGORIES}
    found, failed = bench.turns(
        {name: partial(filled, task) for name, task in tasks.items()}, bench.size(4, 1)
    )
    if failed:
        raise RuntimeError(str(failed))
    bench.table("Kinds of windows, a linear teacher", ["", "rows/s", "CPU µs a row"], _costs(found))
    speed = {name: [run.speed for run in found[name]] for name in tasks}
    for name in list(tasks)[1:]:
        figure = Figure.ratio(speed[name], speed["tumbling"])
        bench.goal(f"rows/s with {name} to tumbling windows of floats", figure, at_least=0.8)


def delay(bench: Bench) -> None:
    speed = 10.0
    plan = plan_of(bench, HAR, devices=DEVICES, rounds=bench.size(90, 24), per_message=4,
                   hop_us=HOP_US)  # fmt: skip
    fill(bench, plan, empty=True)
    with bench.quietly(), workers(bench, plan) as (_, store):
        closed = module("benchmarks.support.backlog", plan.encode(), str(speed))
        log, deadline = Log(store / "scores"), time.monotonic() + 30
        while log.advance() < plan.closed_rows and time.monotonic() < deadline:
            time.sleep(0.1)
        stored = log.stored()
    delays = [stored[d, w] - 1000 * at for d, w, at in closed if (d, w) in stored]
    row: list[Cell] = [len(delays), len(closed) - len(delays)]
    row += [float(np.percentile(delays, q)) for q in (50, 90, 99)]
    text = f"{DEVICES} devices send 4 rows every 0.5 s each; event time runs 10 times as fast."
    columns = ["windows", "not stored", "p50 ms", "p90 ms", "p99 ms"]
    bench.table("Delay from a window's close to its rows in the store", columns, [row], text)


if __name__ == "__main__":
    main(
        "worker",
        {f.__name__: f for f in (throughput, kinds, delay)},
        ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka"),
    )
