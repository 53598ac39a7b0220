"""Growth: `python -m benchmarks.scale`. From slopes on one machine to what gives way first.

    costs       CPU and bytes of a message, a row and a window, by backlogs of several shapes
    commits     the store: a commit, and writers of one table
    fleets      what fleets of a million devices need, and at how many devices each part is full:
                arithmetic on the parts before it

docs/architecture/scale.md has what follows from it.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.frame import MB, Bench, Cell, Figure, main, number
from benchmarks.support.backlog import ORIGIN_US, SMALL, Source
from benchmarks.support.processes import Failed, topic_bytes
from benchmarks.support.workers import drain, fill, plan_of
from streams.contract.events.batches import columns_of
from streams.contract.events.records import encode_events
from streams.contract.task import Task, load_task
from streams.worker.commit.committer import OVERHEAD
from streams.worker.settings import WorkerSettings
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import SCORES
from streams.worker.windows.rows import ScoredWindow, score_rows
from streams.worker.windows.tumbling import Message, Window, split

# devices, messages of each, rows a message, microseconds between rows
SHAPES = ((10, 500, 10, 1e6), (1000, 5, 10, 1e6), (10_000, 1, 5, 1e6), (1000, 1, 50, 1e6),
          (1000, 10, 1, 1e6), (1000, 5, 10, 1e7))  # fmt: skip
QUICK_SHAPES = ((10, 100, 10, 1e6), (200, 5, 10, 1e6), (200, 1, 50, 1e6), (200, 20, 1, 1e6),
                (200, 5, 10, 1e7))  # fmt: skip
LARGEST = (100_000, 1, 10, 1e6)


def fitted(xs: Sequence[Sequence[float]], y: Sequence[float]) -> tuple[list[float], str]:
    """Return the costs of each column and what is spent without any, none of them negative, by
    least squares of relative distances; and how far the line is from the points."""
    values = np.array(y, float)
    columns = np.column_stack([np.array(xs, float), np.ones(len(xs))])
    weights, left = 1.0 / np.maximum(np.abs(values), 1e-12), list(range(columns.shape[1]))
    while True:
        size = np.maximum(np.abs(columns[:, left]).max(axis=0), 1e-12)
        solved, *_ = np.linalg.lstsq(columns[:, left] / size * weights[:, None], values * weights)
        negative = [i for i, value in zip(left, solved / size, strict=True) if value < 0]
        if not negative:
            break
        left = [i for i in left if i not in negative]
    found = np.zeros(columns.shape[1])
    found[left] = solved / size
    off = np.abs(columns @ found - values) * weights
    return found.tolist(), f"{'off by' if off.max() > 0.15 else 'within'} {off.max():.0%}"


@dataclass(frozen=True)
class Shape:
    """What a backlog took; x: messages, rows, windows."""

    x: tuple[int, int, int]
    devices: int
    worker_s: float
    broker_s: float
    resident: int
    wall_s: float
    sizes: dict[str, float]  # bytes by topic, and of the store


def costs(bench: Bench) -> None:
    found = [_drained(bench, *shape) for shape in bench.size(SHAPES, QUICK_SHAPES)]
    told = ""
    if not bench.quick:
        try:
            found.append(_drained(bench, *LARGEST, within_s=480.0))
        except Failed as exc:
            told = f" 100,000 devices failed: {str(exc).splitlines()[-1][:200]}."
    rows: list[list[Cell]] = [
        [f"{one.devices:,}", *one.x, 1e6 * one.worker_s / one.x[1], 1e6 * one.broker_s / one.x[1],
         one.x[1] / one.wall_s, one.resident / MB]
        for one in found
    ]  # fmt: skip
    columns = ["devices", "messages", "rows", "windows", "worker, CPU µs a row", "broker, CPU µs",
               "rows/s", "worker MB"]  # fmt: skip
    text = f"One worker, 16 partitions, rows of 2 x 20 float32, a linear teacher.{told}"
    bench.table("Shapes", columns, rows, text)
    quantities: dict[str, Callable[[Shape], float]] = {
        "worker's CPU, µs": lambda one: 1e6 * one.worker_s,
        "broker's CPU, µs": lambda one: 1e6 * one.broker_s,
        **{f"bytes on {topic}": lambda one, t=topic: one.sizes[t]  # type: ignore[misc]
           for topic in ("events", "scores", "windows")},
        "bytes of the store": lambda one: one.sizes["store"],
    }  # fmt: skip
    lines: list[list[Cell]] = []
    for name, of in quantities.items():
        line, fit = fitted([one.x for one in found], [of(one) for one in found])
        lines.append([name, *line, fit])
        for what, value in zip(("message", "row", "window"), line, strict=False):
            bench.values[f"{name}, {what}"] = value
    bench.table("Costs", ["", "a message", "a row", "a window", "without any", "the fit"], lines)
    same = [one for one in found if one.x[1] / one.x[0] >= 5 and one.x[1] / one.x[2] >= 3]
    (each, base), fit = fitted([[one.devices] for one in same], [one.resident for one in same])
    bench.values["worker bytes a device"] = each
    bench.table("Memory of a worker", ["", "a device, bytes", "without any, MB", "the fit"],
                [["resident", each, base / MB, fit]])  # fmt: skip


def _drained(
    bench: Bench, devices: int, rounds: int, per_message: int, hop_us: float, within_s: float = 240
) -> Shape:
    plan = plan_of(bench, SMALL, devices=devices, rounds=rounds, per_message=per_message,
                   hop_us=int(hop_us), partitions=16)  # fmt: skip
    began = bench.broker_cpu_s
    fill(bench, plan)
    with bench.quietly():
        found, log = drain(bench, plan, within_s=within_s)
    sizes = {"store": float(sum(path.stat().st_size for path in log.table.rglob("*.parquet")))}
    for (topic, _), size in topic_bytes(bench.kafka).items():
        name = topic.removeprefix(f"{plan.load_task().id}.")
        sizes[name] = sizes.get(name, 0.0) + size
    x = plan.messages, found.rows, plan.windows()
    return Shape(x, devices, found.cpu_s, bench.broker_cpu_s - began, found.after[0].rss,
                 found.wall_s, sizes)  # fmt: skip


def _commit(store: DeltaStore, task: Task, partitions: Sequence[int], rows: int, at: int) -> float:
    """Commit a window of each partition as its `at`th; return the seconds."""
    each = rows // len(partitions)
    source, scored = Source(task, each), []
    times = ORIGIN_US + np.arange(each) * (task.window_us // each)
    for partition in partitions:
        made = source.events(f"device-{partition:05d}", at * each, times)
        events = columns_of(made.device, made.epoch, made.first, made.rows)
        pieces = tuple(split(task, Message(0, None), events))
        window = Window(partition, events.device, pieces[0].window, pieces)
        outputs = np.zeros((window.rows, task.outputs), np.float32)
        scored.append(ScoredWindow(window, outputs, 0, at, None))
    table = score_rows(task, "1-teacher", scored)
    began = time.monotonic()
    store.commit(SCORES, table, dict.fromkeys(partitions, at))
    return time.monotonic() - began


def commits(bench: Bench) -> None:
    task, rows = load_task(SMALL), list[list[Cell]]()
    grid = ((1, 100), (1, 4000), (4, 400), (4, 8000), (16, 1600), (16, 16_000), (64, 6400))
    points = []
    for count, size in bench.size(grid, grid[:4]):
        store = DeltaStore(bench.place("commits"))
        took = [1000 * _commit(store, task, range(count), size, at) for at in range(1, 13)][2:]
        points.append(((count, size / 1000), Figure.of(took).median))
        rows.append([count, size, Figure.of(took)])
    (part, thousand, base), fit = fitted([x for x, _ in points], [y for _, y in points])
    text = f"A commit {base:.1f} ms, a partition more {part:.2f}, 1,000 rows more {thousand:.2f}"
    bench.table("A commit", ["partitions", "rows", "ms"], rows, f"{text}; the fit is {fit}.")
    seconds, lines = bench.size(8.0, 2.0), list[list[Cell]]()
    for count in bench.size((1, 2, 4, 8), (1, 2)):
        folder = bench.place("writers")
        _commit(DeltaStore(folder), task, [99], 300, 1)
        jobs = [(folder, seconds, number) for number in range(count)]
        with bench.quietly(), multiprocessing.get_context("spawn").Pool(count) as pool:
            answers = pool.starmap(write, jobs, chunksize=1)
        times = [ms for took, _ in answers for ms in took]
        together = len(times) / seconds
        bench.values["commits"] = max(bench.values.get("commits", 0.0), together)
        errors = [error for _, error in answers if error]
        lines.append([count, together, *(float(np.percentile(times, q)) for q in (50, 99)),
                      errors[0] if errors else "none"])  # fmt: skip
    text = f"Processes that commit 300 rows into one table without a pause, for {seconds:.0f} s."
    columns = ["writers", "commits/s in all", "ms, p50", "ms, p99", "failures"]
    bench.table("Writers of one table", columns, lines, text)


def write(folder: Path, seconds: float, partition: int) -> tuple[list[float], str]:
    """Commit as a worker of one partition without a pause, in a process of the pool; return how
    long each took, ms, and the error that ended it."""
    task, store, times, error = load_task(SMALL), DeltaStore(folder), list[float](), ""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            times.append(1000 * _commit(store, task, [partition], 300, len(times) + 1))
        except Exception as exc:  # it is what the table is for
            error = f"{type(exc).__name__}: {str(exc).splitlines()[0][:200]}"
            break
    return times, error


@dataclass(frozen=True)
class Fleet:
    """devices with an event a second each, so many in a message, this share of them sent."""

    per_message: int = 1
    sent: float = 1.0
    devices: int = 1_000_000

    @property
    def rates(self) -> tuple[float, float, float]:
        """Messages, rows and windows (of 30 s) a second."""
        rows = self.devices * self.sent
        return rows / self.per_message, rows, min(self.devices / 30, rows)

    def of(self, values: Mapping[str, float], name: str) -> float:
        """What is spent a second on messages, rows and windows."""
        parts = zip(("message", "row", "window"), self.rates, strict=True)
        return sum(values[f"{name}, {part}"] * rate for part, rate in parts)


def fleets(bench: Bench) -> None:
    slopes = bench.values
    if not {"worker's CPU, µs, row", "commits"} <= slopes.keys():
        raise RuntimeError("fleets needs the parts before it")
    kinds = {"a message an event": Fleet(), "50 events a message": Fleet(50),
             "5 % of the events": Fleet(sent=0.05)}  # fmt: skip
    defaults = {field.name: field.default for field in fields(WorkerSettings)}
    flush_s, buffer = (float(str(defaults[name])) for name in ("flush_s", "buffer_bytes"))
    one = Source(load_task(SMALL), 1).events("device-00000", 0, np.array([ORIGIN_US]))
    waiting = len(encode_events(one)[1] or b"") + OVERHEAD  # bytes that a message counts
    table = max(1, math.floor(slopes["commits"] * flush_s))  # workers that one table takes

    def loads(fleet: Fleet) -> dict[str, float]:
        """Return how much of a core or a bound each part needs."""
        held = max(fleet.rates[0] * 35, min(fleet.devices, fleet.devices * fleet.sent * 35))
        each = waiting + (fleet.per_message - 1) * slopes["bytes on events, row"]
        cpu, buffers = fleet.of(slopes, "worker's CPU, µs") / 1e6, held * each / buffer
        return {
            "one worker's CPU": cpu, "one worker's buffer": buffers,
            "one table's commits": max(cpu, buffers) / table,
            "a broker's core, one copy": fleet.of(slopes, "broker's CPU, µs") / 1e6,
        }  # fmt: skip

    rows: list[list[Cell]] = []
    for name in loads(Fleet()):
        at = [fleet.devices / max(loads(fleet)[name], 1e-12) for fleet in kinds.values()]
        rows.append([name, *(number(_digits(one)) for one in at)])
    text = "Devices at which each part is full, from the slopes above: arithmetic, no measurement."
    bench.table("What gives way first", ["", *kinds], rows, text)


def _digits(value: float) -> float:
    """Round to two digits: an extrapolation has no more."""
    return round(value, 1 - math.floor(math.log10(value))) if value > 0 else 0.0


if __name__ == "__main__":
    main(
        "scale",
        {f.__name__: f for f in (costs, commits, fleets)},
        ("pyarrow", "deltalake", "faust-streaming", "aiokafka"),
    )
