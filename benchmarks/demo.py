"""The demo beside busy programs: does it close, in one run, with all its devices?

    python -m benchmarks.demo [--runs 5] [--busy 2] [--write]

Each run is the command of `make demo` on a new state folder, beside `busy` programs that each use a
core. First models are trained anew, or with --cached taken from the user's cache. --write puts the
table into its page.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "demo.md"
COMMAND = ("up", "streams/tasks/har.py:task", "--devices", "6", "--until-closed", "--rounds", "2",
           "--stages", "0.5,1")  # fmt: skip
GOALS = "exit 0, one run, at most one update in ten given up, fleet at least .78, at most 8 minutes"


@dataclass(frozen=True)
class Result:
    """One run of the demo; `given_up` of `asked` updates did not come."""

    code: int
    seconds: float
    runs: int
    asked: int
    given_up: int
    before: float
    after: float
    slowed: str

    @property
    def met(self) -> bool:
        few = self.given_up <= self.asked / 10
        return self.code == 0 and self.runs == 1 and few and self.after >= 0.78 and (
            self.seconds <= 480
        )  # fmt: skip

    def row(self, number: int) -> str:
        verdict = "met" if self.met else "**missed**"
        return (
            f"| {number} | {self.code} | {self.seconds:.0f} | {self.runs} | {self.given_up} of "
            f"{self.asked} | {self.before:.2f} → {self.after:.2f} | {self.slowed} | {verdict} |"
        )


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Keep so many cores busy."""
    started = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(programs)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_once(programs: int, *, cached: bool) -> Result:
    """Run the demo once on a new state folder and, unless `cached`, a new cache of first models."""
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-demo-"))
    cache = Path(os.environ.get("TIDEWHEEL_CACHE", Path.home() / ".cache" / "tidewheel"))
    data = folder / "cache"
    data.mkdir()
    for found in cache.glob("*" if cached else "*.parquet"):  # recordings; or first models, too
        (data / found.name).symlink_to(found)
    environ = {**os.environ, "TIDEWHEEL_CACHE": str(data)}
    argv = [sys.executable, "-m", "compose.cli.main", *COMMAND, "--state", str(folder / "state")]
    began = time.monotonic()
    try:
        with busy(programs):
            done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True)
        return _result(done, time.monotonic() - began, folder / "state")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _result(done: "subprocess.CompletedProcess[str]", seconds: float, state: Path) -> Result:
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
    slowed = re.findall(r"slows down from [\d.]+ to ([\d.]+) times", done.stdout)
    return Result(
        done.returncode,
        seconds,
        len(judged),
        asked,
        asked - sum(e["kind"] == "admitted" for e in events),
        summary["fleet_before"] or 0.0,
        summary["fleet_after"] or 0.0,
        f"to {slowed[-1]}" if slowed else "no",
    )


def table(results: Sequence[Result], programs: int, *, cached: bool) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    rows = "\n".join(result.row(n) for n, result in enumerate(results, 1))
    met = sum(result.met for result in results)
    return f"""# The demo on a busy machine

`python -m benchmarks.demo --runs {len(results)} --busy {programs}{" --cached" * cached}` at {commit}, {os.cpu_count()} cores,
{platform.machine()}, Python {platform.python_version()}: the command of `make demo` on a new state folder, first models
{"from the cache" if cached else "trained anew"}, beside {programs} programs that each use a core (`yes >/dev/null`).

| run | exit | seconds | runs | updates given up | fleet's accuracy | replay slowed | goals |
|---|---|---|---|---|---|---|---|
{rows}

Goals: {GOALS}. Met in {met} of {len(results)}.
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--cached", action="store_true", help="Take first models from the cache.")
    parser.add_argument("--write", action="store_true", help="Write the page.")
    given = parser.parse_args()
    results: list[Result] = []
    for number in range(1, given.runs + 1):
        results.append(run_once(given.busy, cached=given.cached))
        print(results[-1].row(number), flush=True)  # noqa: T201
    text = table(results, given.busy, cached=given.cached)
    if given.write:
        PAGE.write_text(text)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
