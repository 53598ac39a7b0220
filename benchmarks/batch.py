"""Batch jobs: `python -m benchmarks.batch`.

    throughput  rows/s of `tidewheel score` beside a loop of pyarrow and onnxruntime
    memory      of an input that is ten times as large
    resume      a job that is killed at half

The input is Parquet without compression, made-up segments of HAR's shape; the model is HAR's with
random weights. Time is from the start of a command to its end.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.frame import MB, Bench, Cell, Figure, main
from benchmarks.support.processes import ROOT, Failed, family, module, peak_bytes, tidewheel
from streams.batch.sources.plan import SHARD_ROWS

TASK, WIDTH, GROUP = "streams.tasks.har:task", 6 * 128, 20_000
PROCESSES = len(os.sched_getaffinity(0))
OURS, LOOP = "tidewheel score", "a loop of pyarrow and onnxruntime"


@dataclass(frozen=True)
class Run:
    """seconds: in all; first_s: until its first output file; peak: of all processes, each at its
    own peak."""

    seconds: float
    first_s: float
    peak: int


def rows_of(bench: Bench) -> int:
    return bench.size(1_000_000, 200_000)


def source(bench: Bench) -> Path:
    """Return the input, GROUP rows a row group."""
    path = bench.folder / "rows" / "000.parquet"
    if path.exists():
        return path
    path.parent.mkdir()
    noise = np.random.default_rng(0)
    schema = pa.schema([("event", pa.string()), ("segment", pa.list_(pa.float32(), WIDTH))])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows_of(bench), GROUP):
            values = noise.standard_normal(GROUP * WIDTH, np.float32)
            names = pa.array([f"e{first + i}" for i in range(GROUP)])
            segments = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
            writer.write_table(pa.table([names, segments], schema=schema), row_group_size=GROUP)
    return path


def models(bench: Bench) -> Path:
    folder = bench.folder / "models"
    if not folder.exists():
        module("benchmarks.support.model_files", TASK, str(folder))
    return folder


def score(bench: Bench, given: Path, output: Path) -> list[str]:
    return tidewheel(
        "score", TASK, str(given), "--model", str(models(bench) / "model.twa"),
        "--trust", str(models(bench) / "signing.pub"), "--id", "event",
        "--state", str(bench.folder / "state"), "--processes", str(PROCESSES), "--to", str(output),
    )  # fmt: skip


def timed(
    argv: list[str], output: Path, env: Mapping[str, str] | None = None, expected: int = 0
) -> Run:
    """Run a command to its end."""
    log = output.with_name(f"{output.name}.log")
    with log.open("w") as file:
        began, first, peaks = time.monotonic(), 0.0, dict[int, int]()
        process = subprocess.Popen(
            argv, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, **(env or {})}
        )
        while process.poll() is None:
            if not first and output.is_dir() and next(output.glob("*.parquet"), None) is not None:
                first = time.monotonic() - began
            for one in family(process.pid):
                with suppress(OSError, StopIteration):
                    peaks[one.pid] = peak_bytes(one.pid)
            time.sleep(0.05)
        seconds = time.monotonic() - began
    if process.returncode != expected:
        raise Failed(f"{argv} ended with {process.returncode}: {log.read_text()[-1500:]}")
    return Run(seconds, first, sum(peaks.values()))


def written(output: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet"))


def clear(output: Path) -> None:
    for place in (output, output.with_name(f"{output.name}.job")):
        shutil.rmtree(place, ignore_errors=True)


def throughput(bench: Bench) -> None:
    rows = rows_of(bench)

    def loop() -> Run:
        output = bench.place("loop")
        path = str(ROOT / "benchmarks" / "contenders" / "score_loop.py")
        model = str(models(bench) / "model.onnx")
        argv = [sys.executable, path, str(source(bench)), str(output), model, str(PROCESSES)]
        return checked(timed(argv, output), output)

    def ours() -> Run:
        output = bench.place("ours")
        return checked(timed(score(bench, source(bench), output), output), output)

    def checked(run: Run, output: Path) -> Run:
        if (there := written(output)) != rows:
            raise Failed(f"{output.name}: {there:,} of {rows:,} rows")
        clear(output)
        return run

    source(bench)
    models(bench)
    found, failed = bench.turns({OURS: ours, LOOP: loop}, bench.size(3, 1))
    if failed:
        raise RuntimeError(str(failed))
    rate = {name: [rows / run.seconds for run in runs] for name, runs in found.items()}
    table: list[list[Cell]] = [
        [name, Figure.of(rate[name]), Figure.of([run.seconds for run in runs]),
         Figure.of([run.peak / MB for run in runs])]
        for name, runs in found.items()
    ]  # fmt: skip
    text = f"{rows:,} rows of 768 float32, Parquet to Parquet, in {PROCESSES} processes."
    bench.table("Throughput", ["", "rows/s", "seconds", "memory of all, MB"], table, text)
    bench.goal(f"rows/s beside {LOOP}", Figure.ratio(rate[OURS], rate[LOOP]), at_least=0.9)
    bench.goal("start to the first rows, s", Figure.of([run.first_s for run in found[OURS]]))


def memory(bench: Bench) -> None:
    """The same file under ten names is ten times the input: a job reads each."""
    many, rows = bench.place("many"), rows_of(bench)
    many.mkdir()
    times = bench.size(10, 3)
    for n in range(times):
        os.link(source(bench), many / f"{n:02}.parquet")
    peaks = {}
    for count, given in ((rows, source(bench)), (times * rows, many)):
        output = bench.place("memory")
        with bench.quietly():
            peaks[count] = timed(score(bench, given, output), output).peak
        clear(output)
    table: list[list[Cell]] = [[f"{count:,}", peak / MB] for count, peak in peaks.items()]
    bench.table("Memory", ["rows", "MB of all processes"], table)
    small, large = peaks.values()
    bench.goal(f"memory of {times * rows:,} rows to {rows:,}", large / small, at_most=1.1)


def resume(bench: Bench) -> None:
    """The rest of an undisturbed run is its time by the share of rows that are missing."""
    rows = rows_of(bench)
    shards = -(-rows // (SHARD_ROWS // GROUP * GROUP))
    missed = min(PROCESSES * max(1, round(shards / 2 / PROCESSES)), shards - 1)  # whole rounds
    if not missed:
        bench.table("Resume", ["", "seconds"], [], f"{rows:,} rows are a single shard.")
        return
    whole, rest, ratios = list[float](), list[float](), list[float]()
    for _ in range(bench.size(3, 1)):
        output = bench.place("whole")
        with bench.quietly():
            whole.append(timed(score(bench, source(bench), output), output).seconds)
        clear(output)
        output = bench.place("killed")
        point = {"TIDEWHEEL_FAILPOINT": f"score-step-5:{shards - missed}"}
        timed(score(bench, source(bench), output), output, point, -signal.SIGKILL)
        missing = rows - written(output)
        argv = tidewheel("jobs", "resume", f"{output}.job", "--processes", str(PROCESSES),
                         "--state", str(bench.folder / "state"))  # fmt: skip
        with bench.quietly():
            rest.append(timed(argv, output).seconds)
        if (there := written(output)) != rows:
            raise Failed(f"{there:,} of {rows:,} rows after the resume")
        clear(output)
        ratios.append(rest[-1] / (whole[-1] * missing / rows))
    table: list[list[Cell]] = [["undisturbed", Figure.of(whole)],
                               ["resumed after a kill at half", Figure.of(rest)]]  # fmt: skip
    bench.table("Resume", ["", "seconds"], table, f"{rows:,} rows in {shards} shards.")
    text = "resume, to the same share of an undisturbed run"
    bench.goal(text, Figure.of(ratios), at_most=1.05)


if __name__ == "__main__":
    main(
        "batch",
        {f.__name__: f for f in (throughput, memory, resume)},
        ("onnxruntime", "numpy", "pyarrow"),
    )
