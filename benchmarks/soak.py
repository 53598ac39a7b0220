"""A month of a thousand made-up devices in minutes: `python -m benchmarks.soak`, `make soak`.

Real Kafka, workers and controller; devices with the real spool, uplink and downlink in one process
on virtual time. tests/e2e/soak has all of it, and what happens on which day (scenario.py): devices
offline, with wrong clocks and full spools, kills, a week without workers, retention, a better
version, a bad one and another teacher. --quick is the two weeks of `make test`.
"""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.frame import Bench, Cell, main, say
from tests.e2e.soak.run import Day, Soak
from tests.e2e.soak.run import soak as run
from tests.e2e.soak.scenario import SHORT, Scenario

GROWTH = 0.05


def soak(bench: Bench) -> None:
    scenario = bench.size(replace(Scenario(), devices=bench.asked.devices), SHORT)
    folder = bench.place("soak")
    folder.mkdir()
    broker = bench.kafka
    found = run(folder, broker, scenario, "soak", bench.broker_pid, say)
    bench.goal("events that are not accounted for", sum(map(abs, found.open.values())), at_most=0)
    bench.goal("events that are in the store twice", found.repeated, at_most=0)
    _account(bench, found)
    rows: list[list[Cell]] = []
    for name in sorted(found.days[-1].memory_mb):
        warm, end = (_mean(found.days[at : at + 3], name) for at in (scenario.warm, -4))
        rows.append([name, warm, end, f"{end / warm - 1:+.1%}"])
        bench.goal(f"growth of {name}'s memory after warm-up", end / warm - 1, at_most=GROWTH)
    text = f"Resident, MB: means of three days from day {scenario.warm} on and before the last."
    bench.table("Memory", ["process", "warm", "end", "growth"], rows, text)
    last, warm_day = found.days[-1], found.days[scenario.warm]
    store: list[list[Cell]] = [[day.day, day.store_files, day.store_mb] for day in (warm_day, last)]
    text = f"Rows age out after {scenario.keep} days."
    bench.table("The store", ["day", "files", "MB"], store, text)
    commands: list[list[Cell]] = [[name, took] for name, took in found.commands_s.items()]
    text = f"The run took {found.seconds / 60:.1f} minutes; lag at the end: {found.lag} messages."
    bench.table("Commands at the end", ["command", "seconds"], commands, text)


def _account(bench: Bench, found: Soak) -> None:
    lost = sum(found.dropped.values())
    rows: list[list[Cell]] = [["answered by devices", found.produced], ["scored", found.scored]]
    rows += [[f"dropped: {reason}", count] for reason, count in found.dropped.items()]
    rows.append(["neither scored nor dropped", found.produced - found.scored - lost])
    ends = [d for d in found.decisions if d.startswith(("served", "rolled-back", "teacher"))]
    text = f"From the devices' frames and the store. Decisions: {', '.join(ends)}."
    bench.table("The account", ["", "events"], rows, text)


def _mean(days: Sequence[Day], name: str) -> float:
    found = [day.memory_mb[name] for day in days if name in day.memory_mb]
    return sum(found) / max(len(found), 1)


if __name__ == "__main__":
    main(
        "soak",
        {"soak": soak},
        ("kafka-python", "faust-streaming", "deltalake", "duckdb"),
        lambda parser: parser.add_argument("--devices", type=int, default=1000),
    )
