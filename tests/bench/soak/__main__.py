"""`python -m tests.bench.soak [--quick] [--devices N] [--days N]`."""

import argparse
import dataclasses
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.kafka import real_kafka
from tests.bench.machine import PATIENCE_S, load_fact, wait_until_quiet, watched
from tests.bench.pages import PAGES, RUNS, begin, finish
from tests.bench.report import Goal, Results, Table
from tests.bench.soak.plot import plot
from tests.bench.soak.run import Day, Soak, soak
from tests.bench.soak.scenario import SHORT, Scenario

PACKAGES = ("kafka-python", "faust-streaming", "deltalake", "duckdb", "torch")
GROWTH = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak")
    parser.add_argument("--quick", action="store_true", help="the short form of the tests")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--days", type=int)
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.soak", *sys.argv[1:]])
    scenario = SHORT if asked.quick else Scenario()
    sizes = {name: getattr(asked, name) for name in ("devices", "days") if getattr(asked, name)}
    scenario = dataclasses.replace(scenario, **sizes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-soak-"))
    try:
        with real_kafka(folder) as kafka:
            results = begin("soak", command, kafka.name, PACKAGES)
            wait_until_quiet(kafka.pid, PATIENCE_S)
            with watched(kafka.pid) as load:
                found = soak(folder, kafka.settings, scenario, "soak", kafka.pid, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.facts["other load"] = load_fact(load.others, "the run")
    results.facts["size"] = f"{scenario.devices} devices, {len(found.days)} days of event time"
    report(results, scenario, found)
    whole = scenario == Scenario()
    place = PAGES if whole else RUNS
    place.mkdir(parents=True, exist_ok=True)
    plot(found.days, place / "soak.svg")
    finish("soak", results, whole=whole)
    if found.open or found.repeated or not all(goal.met for goal in results.goals[:2]):
        sys.exit(1)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def report(results: Results, scenario: Scenario, found: Soak) -> None:
    """Add the tables and goals."""
    grown = growths(found.days, scenario.warm)
    results.goals += [
        Goal("events that are not accounted for", sum(map(abs, found.open.values())), at_most=0),
        Goal("events that are in the store twice", found.repeated, at_most=0),
        *(Goal(f"growth of {name}'s memory after warm-up", share, at_most=GROWTH)
          for name, (*_, share) in grown.items()),
    ]  # fmt: skip
    lost = sum(found.dropped.values())
    results.tables += [
        Table(
            "The account", "Counted from the frames of the devices' spools, and from the store.",
            ["", "events"],
            [
                ["answered by devices", found.produced],
                ["scored", found.scored],
                *([f"dropped: {reason}", count] for reason, count in found.dropped.items()),
                ["answered, and neither scored nor dropped", found.produced - found.scored - lost],
                ["rows in the store at the end", found.rows],
            ],
        ),
        Table(
            "Memory",
            f"Resident, MB: the mean of three days from day {scenario.warm} on, halfway from it, "
            "and at the end.",
            ["process", "warm", "middle", "end", "growth"],
            [[name, *values[:3], f"{values[3]:+.1%}"] for name, values in grown.items()],
        ),
        Table(
            "The store", f"Rows age out after {scenario.keep} days.",
            ["day", "files", "MB"],
            [[day.day, day.store_files, day.store_mb] for day in _three(found.days, scenario.warm)],
        ),
        Table(
            "Commands at the end", f"Lag: {found.lag} messages. The whole run took "
            f"{found.seconds / 60:.1f} minutes. Workers started again because another had "
            f"committed: {found.fenced}.",
            ["command", "seconds"], [[name, took] for name, took in found.commands_s.items()],
        ),
        Table(
            "Decisions", "As the controller and the first registry made them.",
            ["", "decision"], [[i, line] for i, line in enumerate(found.decisions, 1)],
        ),
    ]  # fmt: skip


def _three(days: Sequence[Day], warm: int) -> list[Day]:
    return [days[warm], days[(warm + len(days) - 1) // 2], days[-1]]


def growths(days: Sequence[Day], warm: int) -> dict[str, tuple[float, float, float, float]]:
    """Return by process the memory when warm, in the middle and at the end, and the growth."""
    middle = (warm + len(days) - 3) // 2
    found = {}
    for name in sorted(days[-1].memory_mb):
        means = [
            sum(day.memory_mb[name] for day in days[at : at + 3]) / 3
            for at in (warm, middle, len(days) - 3)
        ]
        found[name] = means[0], means[1], means[2], means[2] / means[0] - 1
    return found


if __name__ == "__main__":
    main()
