"""The store by itself: `python -m tests.bench.scale.commits FOLDER PARTITION SECONDS` commits as a
worker of one partition does, as fast as it can, and prints how often and how long each took.

The other parts run it, and the product's own DeltaStore in this process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from streams.contract.task import Task, load_task
from streams.worker.scoring.rows import ScoredWindow, score_rows
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import SCORES
from streams.worker.windows.tumbling import Message, Window, split
from tests.bench.report import Cell, Figure, Results, Table
from tests.bench.scale.drains import Bed
from tests.bench.scale.fit import fit
from tests.bench.streams.bench import ROOT
from tests.bench.streams.feed.generator import Source
from tests.bench.streams.feed.plan import ORIGIN_US
from tests.bench.streams.feed.tasks import SCALING

GRID = ((1, 100), (1, 4000), (4, 400), (4, 8000), (16, 1600), (16, 16_000), (64, 6400))
QUICK_GRID = ((1, 100), (4, 400), (4, 4000), (16, 1600))
ROWS = 300  # of a partition in a commit: a flush interval of 1,000 devices
WRITERS, QUICK_WRITERS = (1, 2, 4, 8), (1, 2)
PARTITIONS = 16  # of the table that grows
MB = 1e6


def rows_of(task: Task, partitions: Sequence[int], rows: int, commit: int) -> pa.Table:
    """Rows of one commit: the same of each partition, one window of a device of its own each."""
    each = rows // len(partitions)
    source, scored = Source(task, each), []
    times = ORIGIN_US + np.arange(each) * (task.window_us // each)
    for partition in partitions:
        events = source.events(f"device-{partition:05d}", commit * each, times)
        pieces = tuple(split(task, Message(0, None), events))
        window = Window(partition, events.device, pieces[0].window, pieces)
        outputs = np.zeros((window.rows, task.outputs), np.float32)
        scored.append(ScoredWindow(window, outputs, 0, commit, None))
    return score_rows(task, "1-teacher", scored)


def committed(store: DeltaStore, table: pa.Table, partitions: Sequence[int], number: int) -> float:
    """Commit a table as the partitions' `number`th; return the seconds."""
    began = time.monotonic()
    store.commit(SCORES, table, dict.fromkeys(partitions, number))
    return time.monotonic() - began


def commits(bed: Bed, results: Results) -> None:
    """What a commit costs, how many writers get along, and how the table grows."""
    task = load_task(SCALING)
    _cost(bed, results, task)
    _writers(bed, results)
    _growth(bed, results, task)


def _cost(bed: Bed, results: Results, task: Task) -> None:
    rows: list[list[Cell]] = []
    wall, cpu = [], []
    for count, size in QUICK_GRID if bed.quick else GRID:
        partitions, store = range(count), DeltaStore(bed.stage.new_folder("commits"))
        spent, used = [], []
        for number in range(1, 13):
            table = rows_of(task, partitions, size, number)
            began = time.process_time()
            took = committed(store, table, partitions, number)
            if number > 2:  # the first ones make the table
                spent.append(1000 * took)
                used.append(1000 * (time.process_time() - began))
        wall.append(((count, size), spent))
        cpu.append(((count, size), used))
        rows.append([count, size, Figure.of(spent), Figure.of(used)])
    text = (
        "`DeltaStore.commit` in a process of its own table, 10 commits each; every partition of a "
        "commit is one file more."
    )
    columns = ["partitions", "rows", "ms a commit", "CPU ms a commit"]
    results.tables.append(Table("A commit", text, columns, rows))
    lines: list[list[Cell]] = []
    for name, points in (("ms", wall), ("CPU ms", cpu)):
        made = fit(points)
        slopes = [made.slopes[0], *(_times(1000, made.slopes[1:]))]
        lines.append([name, made.intercept, *slopes, made.verdict])
    columns = ["", "a commit", "a partition more", "1,000 rows more", "the fit"]
    results.tables.append(Table("Costs of a commit", "Lines through these.", columns, lines))


def _times(factor: float, figures: Sequence[Figure]) -> list[Figure]:
    return [Figure(factor * f.median, factor * f.low, factor * f.high, f.runs) for f in figures]


def _writers(bed: Bed, results: Results) -> None:
    seconds, rows = 3.0 if bed.quick else 8.0, list[list[Cell]]()
    for count in QUICK_WRITERS if bed.quick else WRITERS:
        folder = bed.stage.new_folder("writers")
        committed(DeltaStore(folder), rows_of(load_task(SCALING), [99], ROWS, 1), [99], 1)
        with bed.watched() as load:
            found = [_Writer(folder, partition, seconds) for partition in range(count)]
            answers = [one.answer() for one in found]
        times = [took for answer in answers for took in answer["ms"]]
        failures = [answer["error"] for answer in answers if answer["error"]]
        rows.append(
            [
                count, sum(len(a["ms"]) / a["seconds"] for a in answers), float(np.median(times)),
                float(np.percentile(times, 99)), failures[0] if failures else "none",
                f"{load.others:.0%}",
            ]
        )  # fmt: skip
    text = (
        f"Processes that commit {ROWS} rows of a partition each into one table as fast as they "
        f"can, for {seconds:.0f} s. A worker commits about three times a second."
    )
    columns = ["writers", "commits/s in all", "ms, median", "ms, p99", "failures", "others' load"]
    results.tables.append(Table("Writers of one table", text, columns, rows))


class _Writer:
    def __init__(self, folder: Path, partition: int, seconds: float) -> None:
        argv = [sys.executable, "-m", "tests.bench.scale.commits", str(folder), str(partition)]
        self._process = subprocess.Popen(
            [*argv, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> dict:  # type: ignore[type-arg]
        output, _ = self._process.communicate()
        found: dict = json.loads(output.splitlines()[-1])  # type: ignore[type-arg]
        return found


def _growth(bed: Bed, results: Results, task: Task) -> None:
    """A table of PARTITIONS partitions, a commit of all of them at a time, then maintenance."""
    count, folder = 64 if bed.quick else 256, bed.stage.new_folder("growth")
    store, rows = DeltaStore(folder), list[list[Cell]]()
    partitions, times = range(PARTITIONS), list[float]()
    for number in range(1, count + 1):
        table = rows_of(task, partitions, PARTITIONS * 20, number)
        times.append(committed(store, table, partitions, number))
        if number in (count // 8, count // 4, count // 2, count):
            rows.append(_state(f"{number} commits", folder, times[-16:]))
    began = time.monotonic()
    for partition in partitions:
        DeltaStore(folder).keep_up(partition)
    took = time.monotonic() - began
    rows.append(_state(f"after maintenance, {took:.1f} s", folder, []))
    last = [committed(store, rows_of(task, partitions, PARTITIONS * 20, n), partitions, n)
            for n in range(count + 1, count + 17)]  # fmt: skip
    rows.append(_state("16 commits more", folder, last))
    text = (
        f"Commits of 20 rows from each of {PARTITIONS} partitions without maintenance in between; "
        "then the product's own for every partition: snapshot of its position, compaction, vacuum. "
        "Position: what an assignment of one partition reads first. Files that compaction has "
        "replaced stay for a day."
    )
    columns = ["", "ms a commit, the last 16", "data files in the version", "files on the disk",
               "log MB", "checkpoints", "data MB", "s of a position"]  # fmt: skip
    results.tables.append(Table("Growth of the store", text, columns, rows))


def _state(name: str, folder: Path, times: Sequence[float]) -> list[Cell]:
    from deltalake import DeltaTable

    scores = folder / "scores"
    log, data = list((scores / "_delta_log").iterdir()), list(scores.rglob("*.parquet"))
    began = time.monotonic()
    DeltaStore(folder).position(0)
    position_s = time.monotonic() - began
    checkpoints = sum(".checkpoint." in path.name for path in log)
    data = [path for path in data if path.parent.name != "_delta_log"]
    return [
        name, Figure.of([1000 * took for took in times]) if times else None,
        len(DeltaTable(str(scores)).file_uris()), len(data),
        sum(path.stat().st_size for path in log) / MB, checkpoints,
        sum(path.stat().st_size for path in data) / MB, position_s,
    ]  # fmt: skip


def main(folder: str, partition: int, seconds: float) -> None:
    task, store, times = load_task(SCALING), DeltaStore(Path(folder)), list[float]()
    table = rows_of(task, [partition], ROWS, 1)
    began, error = time.monotonic(), ""
    while time.monotonic() - began < seconds:
        try:
            times.append(1000 * committed(store, table, [partition], len(times) + 1))
        except Exception as exc:  # it is what the table is for
            error = f"{type(exc).__name__}: {str(exc).splitlines()[0][:200]}"
            break
    found = {"ms": times, "seconds": time.monotonic() - began, "error": error}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
