"""What a row and a device cost as devices become many."""

from streams.tasks import har
from tests.bench.report import Cell, Goal, Results, Table
from tests.bench.streams import worker
from tests.bench.streams.plan import Plan
from tests.bench.streams.state import bytes_per_device
from tests.bench.streams.subject import MB, Bench
from tests.bench.streams.tasks import SCALING


def scaling(bench: Bench, results: Results) -> None:
    """10 to 10,000 devices with the same rows, messages and windows."""
    rows: list[list[Cell]] = []
    walls, cpus, resident = [], [], []
    for devices in bench.size.counts:
        per_message = 16
        plan = bench.stage.plan(
            SCALING,
            devices=devices,
            rounds=bench.size.scaling_messages // devices,
            per_message=per_message,
            hop_us=round(30e6 / per_message),
            phase=1.5,
        )
        bench.stage.preload(plan)
        found, others = median(bench, plan)
        walls.append(found.wall_s / plan.rows)
        cpus.append(found.cpu_s / plan.rows)
        resident.append(found.resident_bytes)
        cells: list[Cell] = [f"{devices:,}", plan.rows / found.wall_s, 1e6 * walls[-1]]
        cells += [1e6 * cpus[-1], cpus[-1] / cpus[0], found.resident_bytes / MB]
        rows.append([*cells, f"{others:.0%}"])
    messages = bench.size.scaling_messages
    text = (
        f"{messages * 16:,} rows (2 x 20 float32) in {messages:,} messages and as many closed "
        "windows of 16 rows each time, a linear teacher. The last row of each device stays in an "
        f"open window. The median of {bench.size.repeats} by CPU."
    )
    columns = ["devices", "rows/s", "wall s per 1M rows", "CPU s per 1M rows", "to the first"]
    columns += ["resident MB after it", "others' load"]
    results.tables.append(Table("Devices", text, columns, rows))
    results.goals.append(
        Goal(
            f"CPU a row, the dearest of {bench.size.counts[0]} to {bench.size.counts[-1]:,} "
            "devices to the cheapest",
            max(cpus) / min(cpus),
            at_most=1.2,
        )
    )
    more = bench.size.counts[-1] - bench.size.counts[0]
    grown = (resident[-1] - resident[0]) / more
    memory(results, f"of the process, {bench.size.counts[-1]:,} devices less 10", grown)


def median(bench: Bench, plan: Plan) -> tuple[worker.Drain, float]:
    """Of some drains the one of median CPU, and how much others used the machine meanwhile."""
    runs = []
    for _ in range(bench.size.repeats):
        bench.stage.wait_until_quiet()
        with bench.watched() as load:
            found = bench.stage.drain(plan)
        runs.append((found, load.others))
    return sorted(runs, key=lambda run: run[0].cpu_s)[len(runs) // 2]


def memory(results: Results, name: str, grown: float | None) -> None:
    """Memory a device, weighed in this process, and as the worker's processes differ."""
    state, watch = bytes_per_device(har.task)
    rows: list[list[Cell]] = [["partition's state", state], ["drift's counts", watch]]
    rows.append(["both", state + watch])
    if grown is not None:
        rows.append([name, grown])
    text = (
        "HAR's reference of 106 cells and 12 windows of history, no open rows (tracemalloc, 1,000 "
        "devices). The difference of the processes has the open row of each device with the "
        "message that it keeps alive, and whatever the allocator holds."
    )
    results.tables.append(Table("Memory a device", text, ["", "bytes"], rows))
    results.goals.append(Goal("state a device, bytes", state + watch, at_most=4096))
