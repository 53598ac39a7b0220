"""The frame of a benchmark: options, a quiet machine, Kafka, processes, tables, goals.

A program has parts, functions that take a `Bench` and add tables and goals to it:

    if __name__ == "__main__":
        main("device", {"memory": memory, "wire": wire}, packages=("onnxruntime",))

A part begins when other processes use less than a tenth of a core, or after a minute. The result is
printed as Markdown, or with --json as JSON; progress goes to standard error. A part that fails is
named in the result, and the program then exits with code 1.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import psutil

from benchmarks.support.processes import ROOT, Failed, family, usage
from compose.launcher import broker
from streams.kafka.settings import BrokerSettings
from tests.rig.servers.kafka import serving, with_kafka

QUIET, PATIENCE_S = 0.10, 60.0  # cores that others may use, and how long a part waits for that
MB = 1e6
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """What several runs measured: the median, the lowest and the highest."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def ratio(cls, above: Sequence[float], below: Sequence[float]) -> Self:
        """Compare two contenders that took turns, turn by turn."""
        return cls.of([one / other for one, other in zip(above, below, strict=True)])

    def __str__(self) -> str:
        spread = f" ({number(self.low)} to {number(self.high)})" if self.runs > 1 else ""
        return f"{number(self.median)}{spread}"


Cell = str | float | Figure | None


@dataclass(frozen=True)
class Table:
    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Goal:
    """A figure and what is aimed at; of several runs the median counts."""

    text: str
    measured: float | Figure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def wanted(self) -> str:
        both = ("at least", self.at_least), ("at most", self.at_most)
        return " and ".join(f"{word} {number(x)}" for word, x in both if x is not None)

    @property
    def verdict(self) -> str:
        """ "-" if nothing is aimed at."""
        found = self.measured.median if isinstance(self.measured, Figure) else self.measured
        low = self.at_least is None or found >= self.at_least
        met = low and (self.at_most is None or found <= self.at_most)
        return ("met" if met else "**missed**") if self.wanted else "-"


@dataclass
class Bench:
    """A run of a program. `load` is the highest use of the machine by others so far, in cores."""

    asked: argparse.Namespace
    folder: Path
    facts: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    load: float = 0.0
    values: dict[str, float] = field(default_factory=dict)  # figures that later parts use
    _stack: ExitStack = field(default_factory=ExitStack)
    broker_pid: int | None = None  # where it is this program's
    _folders: int = 0

    @property
    def quick(self) -> bool:
        return bool(self.asked.quick)

    def size(self, full: T, quick: T) -> T:
        """Return how much is measured."""
        return quick if self.quick else full

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], text: str = ""
    ) -> None:
        self.tables.append(Table(title, text, columns, rows))

    def goal(self, text: str, measured: float | Figure, **wanted: float | None) -> None:
        """Note a goal: `at_least`, `at_most`."""
        self.goals.append(Goal(text, measured, **wanted))

    def place(self, name: str) -> Path:
        """Return a new path for a run's files."""
        self._folders += 1
        folder = self.folder / f"{self._folders:03d}-{name}"
        folder.parent.mkdir(exist_ok=True)
        return folder

    @cached_property
    def kafka(self) -> BrokerSettings:
        """A real Kafka, from its first use to the end of the program."""
        environ = with_kafka(address=True)
        state = self.folder / "kafka"
        choice = broker.choose(state, None, environ)
        if choice.kind == "embedded":
            raise SystemExit("a real Kafka is needed: set KAFKA_HOME or TIDEWHEEL_KAFKA")
        node = serving(choice, state, self.folder / "broker.log")
        process = self._stack.enter_context(node)
        self.broker_pid = process.pid if process is not None else None
        return choice.settings

    @property
    def broker_cpu_s(self) -> float:
        """CPU seconds of the broker so far; 0 where it is not this program's."""
        return usage(self.broker_pid).cpu_s if self.broker_pid is not None else 0.0

    @contextmanager
    def quietly(self, patience_s: float = 10.0) -> Iterator[None]:
        """Wait for a quiet machine, and watch what others use in the block."""
        deadline = time.monotonic() + (1.0 if self.quick else patience_s)
        others = 1.0
        while others > QUIET and time.monotonic() < deadline:
            began, before = time.monotonic(), self._others_s()
            time.sleep(1.0)
            others = (self._others_s() - before) / (time.monotonic() - began)
        began, before = time.monotonic(), self._others_s()
        yield
        others = (self._others_s() - before) / max(time.monotonic() - began, 0.1)
        self.load = max(self.load, others)

    def _others_s(self) -> float:
        """CPU seconds of all processes but this one and its descendants."""
        at = psutil.cpu_times()
        busy = at.user + at.nice + at.system + at.irq + at.softirq + at.steal
        ours = 0.0
        for process in family(os.getpid()):
            with suppress(psutil.Error):
                ours += sum(process.cpu_times()[:4])  # with children that were waited for
        return float(busy - ours)

    def turns(
        self, contenders: Mapping[str, Callable[[], T]], times: int
    ) -> tuple[dict[str, list[T]], dict[str, str]]:
        """Run contenders in turns on a quiet machine, so that a disturbance hits all; return their
        results, and why some failed."""
        found: dict[str, list[T]] = {name: [] for name in contenders}
        failed: dict[str, str] = {}
        for _ in range(times):
            for name, run in contenders.items():
                if name in failed:
                    continue
                began = time.monotonic()
                try:
                    with self.quietly():
                        found[name].append(run())
                except (Failed, OSError, subprocess.TimeoutExpired) as exc:
                    failed[name] = str(exc).strip().splitlines()[-1][:200]
                    found[name].clear()
                say(f"{name}: {failed.get(name, f'{time.monotonic() - began:.0f} s')}")
        return found, failed


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(
    name: str,
    parts: Mapping[str, Callable[[Bench], None]],
    packages: Sequence[str] = (),
    options: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> None:
    """Run the parts that are asked for, and print the result."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--only", action="append", choices=list(parts), metavar="PART",
        help=f"may be repeated; one of: {', '.join(parts)}",
    )  # fmt: skip
    options(parser)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans count as our own
    failed = []
    with tempfile.TemporaryDirectory(prefix="tidewheel-bench-", ignore_cleanup_errors=True) as made:
        bench = Bench(asked, Path(made), _facts(name, packages))
        with bench._stack:
            for part in asked.only or parts:
                began = time.monotonic()
                try:
                    with bench.quietly(PATIENCE_S):
                        parts[part](bench)
                except Exception:
                    failed.append(part)
                    traceback.print_exc()
                say(f"{part}: {time.monotonic() - began:.0f} s")
    provisional = ": **provisional**" if bench.load > 2 * QUIET else ""
    bench.facts["others"] = f"used at most {bench.load:.0%} of a core{provisional}"
    if failed:
        bench.facts["failed"] = ", ".join(failed)
    if asked.json:
        goals = [{**asdict(goal), "verdict": goal.verdict} for goal in bench.goals]
        found = {"facts": bench.facts, "goals": goals, "tables": list(map(asdict, bench.tables))}
        print(json.dumps(found, indent=1))
    else:
        print(_markdown(bench))
    sys.exit(bool(failed))


def _facts(name: str, packages: Sequence[str]) -> dict[str, str]:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = ", with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    memory = psutil.virtual_memory().total / 1e9
    return {
        "command": f"`{shlex.join(['python', '-m', f'benchmarks.{name}', *sys.argv[1:]])}`",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "machine": f"{os.cpu_count()} cores, {cpu}, {memory:.0f} GB, Linux {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def _markdown(bench: Bench) -> str:
    lines = [f"- {name}: {text}" for name, text in bench.facts.items()]
    tables = list(bench.tables)
    if bench.goals:
        rows = [[g.text, g.wanted or "-", g.measured, g.verdict] for g in bench.goals]
        tables.insert(0, Table("Goals", "", ["goal", "wanted", "measured", ""], rows))
    for table in tables:
        lines += ["", f"### {table.title}", "", *([table.text, ""] if table.text else [])]
        cells = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)]]
        cells += [[number(cell) for cell in row] for row in table.rows]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)


def number(cell: Cell) -> str:
    """Return a cell's text: three figures, and thousands apart."""
    if cell is None:
        return "-"
    if isinstance(cell, str | Figure):
        return str(cell)
    if abs(cell) >= 100 or cell == int(cell):
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
