"""The demo beside busy programs: `python -m benchmarks.demo [--runs 5] [--busy 2] [--cached]`.

Does it close, in one run, with all its devices? Each run is the command of `make demo` on a new
state folder, beside `busy` programs that each use a core. First models are trained anew, or with
--cached taken from the user's cache.
"""

import json
import os
import re
import subprocess
import time
from argparse import ArgumentParser
from contextlib import ExitStack
from pathlib import Path

from benchmarks.frame import Bench, Cell, main
from benchmarks.support.processes import ROOT, running, tidewheel

COMMAND = ("up", "streams/tasks/har.py:task", "--devices", "6", "--until-closed", "--rounds", "2",
           "--stages", "0.5,1")  # fmt: skip
GOALS = "exit 0, one run, at most one update in ten given up, fleet at least .78, at most 8 minutes"


def demo(bench: Bench) -> None:
    rows = [_run(bench) for _ in range(bench.size(bench.asked.runs, 1))]
    columns = ["exit", "seconds", "runs", "updates given up", "fleet's accuracy",
               "replay slowed", "goals"]  # fmt: skip
    text = f"Beside {bench.asked.busy} programs that each use a core. Goals: {GOALS}."
    bench.table("The demo on a busy machine", columns, rows, text)
    met = sum(row[-1] == "met" for row in rows)
    bench.goal(f"runs of {len(rows)} that meet all goals", met, at_least=len(rows))


def _run(bench: Bench) -> list[Cell]:
    folder = bench.place("demo")
    cache = Path(os.environ.get("TIDEWHEEL_CACHE", Path.home() / ".cache" / "tidewheel"))
    data, state = folder / "cache", folder / "state"
    data.mkdir(parents=True)
    for found in cache.glob("*" if bench.asked.cached else "*.parquet"):  # of recordings
        (data / found.name).symlink_to(found)
    began = time.monotonic()
    with ExitStack() as stack:
        for n in range(bench.asked.busy):
            stack.enter_context(running(["sh", "-c", "yes >/dev/null"], folder / f"{n}.log"))
        done = subprocess.run(
            tidewheel(*COMMAND, "--state", str(state)), cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "TIDEWHEEL_CACHE": str(data)},
        )  # fmt: skip
    seconds = time.monotonic() - began
    summary = json.loads((state / "summary.json").read_text())
    events = [
        json.loads(line)
        for path in state.glob("runs/*/rounds.jsonl")
        for line in path.read_text().splitlines()
    ]
    # A run that begins while the loop closes is broken off: it has no verdict, and does not count.
    judged = {e["run"] for e in events if e["kind"] in ("promoted", "rejected", "finished")}
    events = [e for e in events if e["run"] in judged]
    asked = sum(int(e["metrics"]["nodes"]) for e in events if e["kind"] == "started")
    lost = asked - sum(e["kind"] == "admitted" for e in events)
    before, after = (value or 0.0 for value in summary["fleet"])
    slowed = re.findall(r"slows down from [\d.]+ to ([\d.]+) times", done.stdout)
    few = lost <= asked / 10 and len(judged) == 1
    met = done.returncode == 0 and few and after >= 0.78 and seconds <= 480
    return [
        str(done.returncode), seconds, len(judged), f"{lost} of {asked}",
        f"{before:.2f} → {after:.2f}", f"to {slowed[-1]}" if slowed else "no",
        "met" if met else "**missed**",
    ]  # fmt: skip


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--cached", action="store_true", help="take first models from the cache")


if __name__ == "__main__":
    main("demo", {"demo": demo}, (), _options)
