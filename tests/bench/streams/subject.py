"""How much is measured, and how a figure is taken: on a quiet machine, the median of some runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.machine import Load
from tests.bench.meter import Measure
from tests.bench.report import Cell
from tests.bench.streams.bench import Stage
from tests.bench.streams.plan import Plan
from tests.bench.streams.tasks import HAR, TRIVIAL

HOP_US = 1_280_000  # of HAR: a row each 1.28 s, 23 or 24 a window
PER_MESSAGE = 64
DEVICES = 50
MB = 1e6

COLUMNS = ["", "rows/s", "of the limit", "CPU s per 1M rows", "peak MB", "rows", "others' load"]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int  # messages of each device
    single: int  # rows the Kafka-ML way
    repeats: int
    scaling_messages: int
    counts: tuple[int, ...]
    live_rounds: int
    teachers: tuple[str, ...] = (HAR, TRIVIAL)  # that other frameworks are measured with


FULL = Size(48, 3000, 3, 20_000, (10, 100, 1000, 10_000), 120)
QUICK = Size(8, 300, 1, 1000, (10, 1000), 24, (HAR,))
TITLES = {HAR: "HAR's teacher", TRIVIAL: "a linear teacher"}


@dataclass(frozen=True)
class Run:
    """A Measure, and how many cores others used meanwhile."""

    measure: Measure
    others: float

    def cells(self, name: str, limit: float | None) -> list[Cell]:
        one = self.measure
        share = None if limit is None else one.rows_per_s / limit
        return [
            name,
            one.rows_per_s,
            share,
            one.cpu_s_per_million,
            one.peak_bytes / MB,
            one.rows,
            f"{self.others:.0%}",
        ]


class Bench:
    """Measures on one stage; the figures of one subject serve the next ones."""

    def __init__(self, stage: Stage, size: Size, quix: Path | None) -> None:
        self.stage, self.size, self.quix = stage, size, quix
        self.rates: dict[tuple[str, str], float] = {}  # (task, contender) -> rows/s
        self.highest_load = 0.0

    def backlog(self, task: str, rounds: int) -> Plan:
        plan = self.stage.plan(
            task, devices=DEVICES, rounds=rounds, per_message=PER_MESSAGE, hop_us=HOP_US
        )
        self.stage.preload(plan)
        return plan

    def once(self, measure: Callable[[], Measure]) -> Run:
        """Run when the machine is quiet."""
        self.stage.wait_until_quiet()
        with self.watched() as load:
            found = measure()
        return Run(found, load.others)

    @contextmanager
    def watched(self) -> Iterator[Load]:
        """How much others use the machine meanwhile."""
        with self.stage.watched() as load:
            yield load
        self.highest_load = max(self.highest_load, load.others)

    def medians(self, *measures: Callable[[], Measure]) -> list[Run]:
        """Of each its run of median speed; they take turns, so that a disturbance hits all."""
        turns = [[self.once(measure) for measure in measures] for _ in range(self.size.repeats)]
        return [
            sorted(runs, key=lambda run: run.measure.rows_per_s)[len(runs) // 2]
            for runs in zip(*turns, strict=True)
        ]

    def drain(self, plan: Plan, workers: int = 1) -> Run:
        """The worker, or some, on a backlog."""
        return self.once(partial(self.drained, plan, workers))

    def drained(self, plan: Plan, workers: int = 1) -> Measure:
        found = self.stage.drain(plan, workers)
        return Measure(found.rows, found.wall_s, found.cpu_s, found.peak_bytes)
