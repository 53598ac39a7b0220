"""How much is measured, and how a figure is taken: contenders take turns on a quiet machine."""

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import Load
from tests.bench.meter import Measure
from tests.bench.report import Cell, Figure
from tests.bench.streams.bench import ContenderFailed, Stage
from tests.bench.streams.contenders.worker import WorkerEnded
from tests.bench.streams.feed.plan import Plan

HOP_US = 1_280_000  # of HAR: a row each 1.28 s, 23 or 24 a window
PER_MESSAGE = 64
DEVICES = 50
MB = 1e6

# The columns after a contender's name and a ratio; see Runs.cells.
COLUMNS = ["CPU s per 1M rows", "peak MB", "rows", "runs", "others' load"]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int  # messages of each device
    single: int  # rows the Kafka-ML way
    repeats: int
    scaling_messages: int
    counts: tuple[int, ...]
    live_rounds: int


FULL = Size(28, 2000, 3, 20_000, (10, 1000, 10_000), 90)
QUICK = Size(8, 300, 1, 1000, (10, 1000), 24)


@dataclass(frozen=True)
class Run:
    """A Measure, and how many cores others used meanwhile."""

    measure: Measure
    others: float


@dataclass
class Runs:
    """The runs of one contender, or why it failed."""

    found: list[Run]
    failure: str | None = None

    @property
    def speeds(self) -> list[float]:
        return [run.measure.rows_per_s for run in self.found]

    @property
    def speed(self) -> float:
        """The median; 0 if it failed."""
        return 0.0 if self.failure else Figure.of(self.speeds).median

    @property
    def cores(self) -> Figure:
        """Of the machine, busy with it on average."""
        return Figure.of([run.measure.cpu_s / run.measure.wall_s for run in self.found])

    def to(self, other: "Runs") -> Figure | None:
        """How many times as fast as another one, turn by turn; None if one of them failed."""
        if self.failure or other.failure:
            return None
        return Figure.ratio(self.speeds, other.speeds)

    def cells(self, name: str, ratio: Cell) -> list[Cell]:
        """A row: name, rows/s, the ratio, COLUMNS."""
        if self.failure:
            return [name, f"failed: {self.failure}", *[None] * (1 + len(COLUMNS))]
        found = [run.measure for run in self.found]
        return [
            name,
            Figure.of(self.speeds),
            ratio,
            Figure.of([one.cpu_s_per_million for one in found]),
            Figure.of([one.peak_bytes / MB for one in found]),
            Figure.of([one.rows for one in found]).median,
            len(found),
            f"{max(run.others for run in self.found):.0%}",
        ]


class Bench:
    """Measures on one stage; the runs of one subject serve the next ones."""

    def __init__(self, stage: Stage, size: Size, quix: Path | None) -> None:
        self.stage, self.size, self.quix = stage, size, quix
        self.runs: dict[tuple[str, str], Runs] = {}  # (task, contender)
        self.highest_load = 0.0

    def backlog(self, task: str, rounds: int) -> Plan:
        plan = self.stage.plan(
            task, devices=DEVICES, rounds=rounds, per_message=PER_MESSAGE, hop_us=HOP_US
        )
        self.stage.preload(plan)
        return plan

    @contextmanager
    def watched(self) -> Iterator[Load]:
        """How much others use the machine meanwhile."""
        with self.stage.watched() as load:
            yield load
        self.highest_load = max(self.highest_load, load.others)

    def once(self, measure: Callable[[], Measure]) -> Run:
        """Run when the machine is quiet."""
        self.stage.wait_until_quiet()
        with self.watched() as load:
            found = measure()
        return Run(found, load.others)

    def turns(self, task: str, contenders: Mapping[str, Callable[[], Measure]]) -> None:
        """Run all contenders, one after the other, as often as `repeats` says, and keep their
        runs; a disturbance hits all. One that fails has no further turn."""
        for name in contenders:
            self.runs[task, name] = Runs([])
        for _ in range(self.size.repeats):
            for name, measure in contenders.items():
                runs = self.runs[task, name]
                if runs.failure is None:
                    try:
                        runs.found.append(self.once(measure))
                    except FAILURES as exc:
                        runs.failure = str(exc).strip().splitlines()[-1][:200]

    def drained(
        self, plan: Plan, workers: int = 1, environ: Mapping[str, str] | None = None
    ) -> Measure:
        """The worker, or some, on a backlog."""
        found = self.stage.drain(plan, workers, environ)
        if not found.rows:
            raise ContenderFailed("the backlog was done before every worker was ready")
        return Measure(found.rows, found.wall_s, found.cpu_s, found.peak_bytes)


FAILURES = (ContenderFailed, WorkerEnded, subprocess.TimeoutExpired, OSError)
