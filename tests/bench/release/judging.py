"""What judging a rollout takes the controller, by the size of the fleet.

`python -m tests.bench.release.judging DEVICES` is one measurement, in a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from federation.rollout.stage_policy import StageRules, evaluate
from federation.rollout.window_history import KEPT, WindowHistory
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport
from tests.bench.machine import watched
from tests.bench.release.stage import Stage
from tests.bench.report import Cell, Figure, Results, Table

DEVICES = (50, 1000, 10_000)
EVENTS, CLASSES, SECOND = 19, 6, 1_000_000
STABLE, CANDIDATE, SINCE = "1-aaaaaaaa", "2-bbbbbbbb", KEPT - 40
TIMES, RUNS = 5, 3


def judging(stage: Stage, results: Results) -> None:
    """One table."""
    rows: list[list[Cell]] = []
    for devices in DEVICES[:1] if stage.quick else DEVICES:
        with watched(stage.kafka.pid) as load:
            found = [_measured(devices) for _ in range(1 if stage.quick else RUNS)]
        fields = ("decode_us", "add_us", "judge_ms", "memory_mb")
        figures = [Figure.of([one[name] for one in found]) for name in fields]
        rows.append([devices, devices * KEPT, *figures, f"{load.others:.0%}"])
    results.tables.append(
        Table(
            "What judging a rollout takes",
            f"The newest {KEPT} windows of each device, {EVENTS} events of one class each, drawn "
            "by lot; 5 % of the devices have 40 windows by the candidate. One core; the median of "
            f"{RUNS} processes, and the least and the most. Decoding is "
            "what reading `windows` costs anyhow. The controller looks again after ten times as "
            "long as judging took, at the least after 0.25 s.",
            [
                "devices", "windows", "decode a report, µs", "take it in, µs", "judge, ms",
                "memory of the windows, MB", "others' load",
            ],
            rows,
        )
    )  # fmt: skip


def _measured(devices: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.release.judging", str(devices)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _reports(devices: int) -> Iterator[tuple[bytes, int]]:
    """Encoded, and when each was heard, in the order in which a fleet closes windows."""
    dice = np.random.default_rng(1)
    for number in range(KEPT):
        for device in range(devices):
            agreeing, kind = int(dice.binomial(EVENTS, 0.85)), int(dice.integers(CLASSES))
            name = f"device-{device:04d}"
            model = CANDIDATE if number >= SINCE and name in _canary(devices) else STABLE
            report = WindowReport(
                task="t",
                device=name,
                window_us=number * SECOND,
                end_us=(number + 1) * SECOND,
                revision=0,
                events=EVENTS,
                teacher_model="1-cccccccc",
                models={model: ModelWindow(events=EVENTS, compared=EVENTS, agreeing=agreeing)},
                classes={f"class-{kind}": ClassAgreement(events=EVENTS, agreeing=agreeing)},
            )
            yield report.encode(), number * SECOND


@cache
def _canary(devices: int) -> frozenset[str]:
    return frozenset(f"device-{device:04d}" for device in range(max(1, devices // 20)))


def _memory_mb() -> float:
    """Resident now; a child's maximum has its parent's in it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(devices: int) -> dict[str, float]:
    windows, before_mb = WindowHistory(), _memory_mb()
    decode_s = add_s = 0.0
    for data, heard_us in _reports(devices):
        began = time.perf_counter()
        report = WindowReport.decode(data)
        decoded = time.perf_counter()
        windows.add(report, heard_us)
        decode_s += decoded - began
        add_s += time.perf_counter() - decoded
    count, after_mb = devices * KEPT, _memory_mb()
    began = time.perf_counter()
    for _ in range(TIMES):
        evaluate(
            StageRules(),
            windows,
            candidate=CANDIDATE,
            stable=STABLE,
            began_us=SINCE * SECOND,
            stage_began_us=SINCE * SECOND,
            now_us=KEPT * SECOND,
            canary=_canary(devices).__contains__,
            refusals={},
            offered=len(_canary(devices)),
        )
    judge_s = (time.perf_counter() - began) / TIMES
    return {
        "decode_us": 1e6 * decode_s / count,
        "add_us": 1e6 * add_s / count,
        "judge_ms": 1000 * judge_s,
        "memory_mb": after_mb - before_mb,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))  # noqa: T201
