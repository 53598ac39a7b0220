"""What a row and a device cost as devices become many."""

from streams.tasks import har
from tests.bench.report import Cell, Figure, Goal, Results, Table
from tests.bench.streams.contenders.worker import Drain
from tests.bench.streams.feed.plan import Plan
from tests.bench.streams.feed.tasks import SCALING
from tests.bench.streams.state import bytes_per_device
from tests.bench.streams.subject import MB, Bench

PER_MESSAGE = 16


def scaling(bench: Bench, results: Results) -> None:
    """10 to 10,000 devices with the same rows, messages and windows."""
    counts, rows = bench.size.counts, list[list[Cell]]()
    drains: list[list[Drain]] = []
    for devices in counts:
        plan = _plan(bench, devices)
        bench.stage.preload(plan)
        found, others = _drains(bench, plan)
        drains.append(found)
        cpus = [one.cpu_s / plan.rows for one in found]
        first = [one.cpu_s / plan.rows for one in drains[0]]
        rows.append(
            [
                f"{devices:,}",
                Figure.of([plan.rows / one.wall_s for one in found]),
                Figure.of([1e6 * cpu for cpu in cpus]),
                Figure.ratio(cpus, first) if devices != counts[0] else 1,
                Figure.of([one.resident_bytes / MB for one in found]),
                len(found),
                f"{others:.0%}",
            ]
        )
    messages = bench.size.scaling_messages
    text = (
        f"{messages * PER_MESSAGE:,} rows (2 x 20 float32) in {messages:,} messages and as many "
        f"closed windows of {PER_MESSAGE} rows each time, a linear teacher. The last row of each "
        "device stays in an open window."
    )
    columns = ["devices", "rows/s", "CPU s per 1M rows", "to the first", "resident MB after it"]
    results.tables.append(Table("Devices", text, [*columns, "runs", "others' load"], rows))
    medians = [Figure.of([one.cpu_s for one in found]).median for found in drains]
    name = f"CPU a row, the dearest of {counts[0]} to {counts[-1]:,} devices to the cheapest"
    results.goals.append(Goal(name, max(medians) / min(medians), at_most=1.2))
    pairs = zip(drains[-1], drains[0], strict=True)
    more = counts[-1] - counts[0]
    grown = Figure.of([(b.resident_bytes - a.resident_bytes) / more for b, a in pairs])
    _memory(results, f"{counts[-1]:,} devices less {counts[0]}", grown)


def _plan(bench: Bench, devices: int) -> Plan:
    return bench.stage.plan(
        SCALING,
        devices=devices,
        rounds=bench.size.scaling_messages // devices,
        per_message=PER_MESSAGE,
        hop_us=round(30e6 / PER_MESSAGE),
        phase=1.5,
    )


def _drains(bench: Bench, plan: Plan) -> tuple[list[Drain], float]:
    """Some drains, and the most that others used the machine meanwhile."""
    found, loads = [], []
    for _ in range(bench.size.repeats):
        bench.stage.wait_until_quiet()
        with bench.watched() as load:
            found.append(bench.stage.drain(plan))
        loads.append(load.others)
    return found, max(loads)


def _memory(results: Results, name: str, grown: Figure) -> None:
    """Memory a device: by how much the worker's processes differ, and what of it is its state."""
    state, watch = bytes_per_device(har.task)
    rows: list[list[Cell]] = [
        [f"growth of the worker's process, {name}", grown],
        ["of it the partition's state (tracemalloc)", state],
        ["of it drift's counts (tracemalloc)", watch],
    ]
    text = (
        "What the process holds more after the same rows of more devices: the state, the open row "
        "of each device with the message that it keeps alive, and whatever the allocator holds. "
        "The state is weighed in another process, of 1,000 devices with HAR's reference of 106 "
        "cells, 12 windows of history and no open rows."
    )
    results.tables.append(Table("Memory a device", text, ["", "bytes"], rows))
    results.goals.append(Goal("growth of the process a device, bytes", grown, at_most=4096))
