"""Memory by the size of the input, and what a kill at half costs."""

import os
import signal
import statistics

from streams.batch.sources.plan import SHARD_ROWS
from tests.bench.batch.stage import GROUP, Stage, rows_in
from tests.bench.report import Cell, Figure, Goal, Results, Table

TIMES = 10  # as many rows


def memory(stage: Stage, results: Results) -> None:
    """The same file under ten names is ten times the input: a job reads each."""
    many = stage.folder / "many"
    many.mkdir()
    for n in range(TIMES):
        os.link(stage.source, many / f"{n:02}.parquet")
    peaks: dict[int, list[float]] = {stage.rows: [], TIMES * stage.rows: []}
    for _ in range(max(1, stage.repeats // 2)):
        for rows, source in zip(peaks, (stage.source, many), strict=True):
            output = stage.place(f"memory-{rows}")
            run = stage.run(stage.score(source, output), output)
            assert rows_in(output) == rows
            stage.clear(output)
            peaks[rows].append(run.peak_bytes / 1e6)
    rows: list[list[Cell]] = [[f"{n:,}", Figure.of(found), len(found)]
                              for n, found in peaks.items()]  # fmt: skip
    text = "The peaks of all processes of a job, added up."
    results.tables.append(Table("Memory", text, ["rows", "MB", "runs"], rows))
    small, large = peaks.values()
    text = f"memory of {TIMES * stage.rows:,} rows, to {stage.rows:,}"
    results.goals.append(Goal(text, Figure.ratio(large, small), at_most=1.1))


def resumed(stage: Stage, results: Results) -> None:
    """The job is killed when half of its shards are done; the rest of an undisturbed run is its
    time by the share of rows that are missing."""
    shards = -(-stage.rows // (SHARD_ROWS // GROUP * GROUP))
    missed = stage.processes * max(1, round(shards / 2 / stage.processes))  # whole rounds of them
    missed = min(missed, shards - 1)
    whole, rest, ratios = list[float](), list[float](), list[float]()
    for _ in range(stage.repeats):
        output = stage.place("whole")
        whole.append(stage.run(stage.score(stage.source, output), output).seconds)
        stage.clear(output)
        output = stage.place("killed")
        point = {"TIDEWHEEL_FAILPOINT": f"score-step-5:{shards - missed}"}
        command = stage.score(stage.source, output)
        stage.run(command, output, environ=point, expected=-signal.SIGKILL)
        missing = stage.rows - rows_in(output)
        again = stage.run(stage.resume(output), output).seconds
        assert rows_in(output) == stage.rows
        stage.clear(output)
        rest.append(again)
        ratios.append(again / (whole[-1] * missing / stage.rows))
    rows: list[list[Cell]] = [
        ["undisturbed", Figure.of(whole), len(whole)],
        ["resumed after a kill at half", Figure.of(rest), len(rest)],
    ]
    text = (
        f"{stage.rows:,} rows in {shards} shards. What resumes starts anew, hashes the input again "
        "and scores what is missing."
    )
    results.tables.append(Table("Resume", text, ["", "seconds", "runs"], rows))
    name = "resume, to the same share of an undisturbed run"
    results.goals.append(Goal(name, statistics.median(ratios), at_most=1.05))
