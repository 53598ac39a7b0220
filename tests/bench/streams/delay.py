"""How long a closed window takes to be in the store, while devices send."""

import json
import statistics
import time
from dataclasses import fields, replace

import numpy as np

from streams.worker.settings import WorkerSettings
from tests.bench.report import Cell, Results, Table
from tests.bench.streams.contenders import worker
from tests.bench.streams.contenders.sealed import Log
from tests.bench.streams.feed.tasks import HAR
from tests.bench.streams.subject import DEVICES, HOP_US, Bench


def delay(bench: Bench, results: Results) -> None:
    """From a window's close to its rows in the store, while devices send in wall time."""
    speed = 10.0
    plan = bench.stage.plan(
        HAR, devices=DEVICES, rounds=bench.size.live_rounds, per_message=4, hop_us=HOP_US
    )
    bench.stage.preload(replace(plan, rounds=0))
    bench.stage.wait_until_quiet()
    folder = bench.stage.new_folder("delay")
    with worker.workers(plan, folder, 1) as found, bench.watched() as load:
        worker.wait_until_ready(plan, found)
        closed = json.loads(
            bench.stage.run_python("tests.bench.streams.feed.live", [plan.argument(), str(speed)])
        )
        log, deadline = Log(folder / "store" / "scores"), time.monotonic() + 30
        while log.advance() < plan.closed_rows and time.monotonic() < deadline:
            time.sleep(0.1)
    stored = _first_stored(log)
    delays = [stored[d, w] / 1000 - closed_s for d, w, closed_s in closed if (d, w) in stored]
    p50, p99 = (float(np.percentile(delays, q)) for q in (50, 99))
    (flush_s,) = (f.default for f in fields(WorkerSettings) if f.name == "flush_s")
    rows: list[list[Cell]] = [
        ["windows", len(delays)],
        ["windows closed and not stored", len(closed) - len(delays)],
        ["p50, ms", 1000 * p50],
        ["p99, ms", 1000 * p99],
        ["mean, ms", 1000 * statistics.fmean(delays)],
        ["flush interval, ms", 1000 * float(str(flush_s))],
        ["rows/s sent", plan.rows / (plan.rounds * 4 * HOP_US / 1e6 / speed)],
        ["others' load", f"{load.others:.0%}"],
    ]
    text = (
        f"{DEVICES} devices send a message of 4 rows every 0.5 s each; event time runs {speed:.0f} "
        "times as fast as the clock. A window closes when the broker has acknowledged the message "
        "that moves its device's watermark past its end and lateness; it is stored at the time of "
        "the Delta commit (`commitInfo`, ms) that has its rows."
    )
    results.tables.append(Table("Delay from close to store", text, ["", "measured"], rows))


def _first_stored(log: Log) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for device, window, time_ms in log.windows():
        found.setdefault((device, window), time_ms)
    return found
