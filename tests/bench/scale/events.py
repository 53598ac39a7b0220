"""What a message, a row and a window cost, in CPU and bytes; then workers, partitions, devices."""

import sys
from collections.abc import Callable, Sequence

from tests.bench.report import Cell, Figure, Results, Table
from tests.bench.scale.drains import Bed, Case, Drained
from tests.bench.scale.fit import Fit, fit
from tests.bench.streams.subject import FAILURES

MB = 1e6
# Around the middle one: devices, messages of 1 and of 50 rows, 3 rows a window instead of 30.
SHAPES = (
    Case(devices=10, rounds=500),
    Case(),
    Case(devices=10_000, rounds=1, per_message=5),
    Case(rounds=1, per_message=50),
    Case(rounds=10, per_message=1),
    Case(hop_us=10_000_000),
)
AGAIN = (Case(), Case(rounds=1, per_message=50), Case(rounds=10, per_message=1))
LARGEST = Case(devices=100_000, rounds=1)
GRID = (
    Case(partitions=4), Case(), Case(partitions=64), Case(workers=2), Case(workers=4),
    Case(workers=4, partitions=64),
)  # fmt: skip
QUICK_SHAPES = (
    Case(devices=10, rounds=200), Case(rounds=2), Case(rounds=1, per_message=50),
    Case(rounds=20, per_message=1), Case(rounds=2, hop_us=10_000_000),
)  # fmt: skip
QUICK_GRID = (Case(partitions=4, rounds=2), Case(workers=2, partitions=4, rounds=2))


def events(bed: Bed, results: Results) -> None:
    """The shapes, in turns, and a line through them."""
    turns = (QUICK_SHAPES,) if bed.quick else (SHAPES, AGAIN)
    found: dict[Case, list[Drained]] = {case: [] for case in turns[0]}
    for turn in turns:
        for case in turn:
            found[case].append(bed.drain(case))
    failure = ""
    if not bed.quick:
        failure = _largest(bed, found)
    runs = list(found.values())
    _table(results, runs, failure)
    _costs(results, runs)
    _memory(results, runs)


def _largest(bed: Bed, found: dict[Case, list[Drained]]) -> str:
    """100,000 devices in one worker, once; what it said if that failed."""
    try:
        found[LARGEST] = [bed.drain(LARGEST, timeout_s=480.0)]
    except FAILURES as exc:
        text = str(exc).strip().splitlines()[-1][:300]
        return f" 100,000 devices in one worker: **failed**: {text}"
    return ""


def _table(results: Results, runs: Sequence[list[Drained]], failure: str) -> None:
    rows: list[list[Cell]] = []
    for each in runs:
        first, case = each[0], each[0].case
        rows.append(
            [
                f"{case.devices:,}", case.per_message, first.messages, first.rows, first.windows,
                Figure.of([1e6 * one.worker_s / one.rows for one in each]),
                Figure.of([1e6 * (one.broker_s + one.sent_s) / one.rows for one in each]),
                Figure.of([one.rows / one.wall_s for one in each]),
                Figure.of([one.resident_bytes / MB for one in each]),
                len(each), f"{max(one.others for one in each):.0%}",
            ]
        )  # fmt: skip
    text = (
        "One worker, 16 partitions, rows of 2 x 20 float32, a linear teacher; one row a second of "
        "event time, in the row with most windows one in 10 s. A backlog. CPU is user and system "
        "time of the worker and of the broker (while devices send, and while the worker reads and "
        f"publishes).{failure}"
    )
    columns = ["devices", "rows a message", "messages", "rows", "windows", "worker, CPU s per 1M "
               "rows", "broker, CPU s per 1M rows", "rows/s", "worker MB", "runs",
               "others' load"]  # fmt: skip
    results.tables.append(Table("Shapes", text, columns, rows))


def _costs(results: Results, runs: Sequence[list[Drained]]) -> None:
    """Lines through message, row and window, all at once."""
    rows: list[list[Cell]] = []
    quantities: list[tuple[str, float, Callable[[Drained], float]]] = [
        ("worker's CPU, µs", 1e6, lambda one: one.worker_s),
        ("broker's CPU while devices send, µs", 1e6, lambda one: one.sent_s),
        ("broker's CPU while the worker drains, µs", 1e6, lambda one: one.broker_s),
        ("bytes on `events`", 1, lambda one: one.topics["events"]),
        ("bytes on `scores`", 1, lambda one: one.topics["scores"]),
        ("bytes on `windows`", 1, lambda one: one.topics["windows"]),
        ("bytes of the store", 1, lambda one: one.store_bytes),
    ]
    for name, unit, value in quantities:
        made = fit([(each[0].x, [unit * value(one) for one in each]) for each in runs])
        rows.append([name, *made.slopes, made.intercept, made.verdict])
    text = (
        "Least squares of relative distances over the rows of the table before: what one message, "
        "one row and one window more cost at the same time, and what is spent without any. Spread: "
        "the turns, each fitted by itself. 0: no such cost could be told from the others."
    )
    columns = ["", "a message", "a row", "a window", "without any", "the fit"]
    results.tables.append(Table("Costs", text, columns, rows))


def _memory(results: Results, runs: Sequence[list[Drained]]) -> None:
    """Growth of the worker's process with devices, of the shapes that differ in them."""
    usual = (Case().hop_us, range(5, 11))  # of a window's rows, and of a message's
    shown = [
        each for each in runs
        if each[0].case.hop_us == usual[0] and each[0].case.per_message in usual[1]
    ]  # fmt: skip
    points = [((each[0].case.devices,), [one.resident_bytes for one in each]) for each in shown]
    if len({x for x, _ in points}) < 2:
        return
    made: Fit = fit(points)
    rows: list[list[Cell]] = [
        ["bytes a device", made.slopes[0]],
        ["bytes without any", made.intercept],
        ["the fit", made.verdict],
    ]
    text = (
        "A line through the worker's resident memory after its rows. It holds each device's "
        "state, drift's counts, its open row, and what the allocator keeps of the work before."
    )
    results.tables.append(Table("Memory of a device", text, ["", "measured"], rows))


def workers(bed: Bed, results: Results) -> None:
    """Workers and partitions, with devices that send while the workers read."""
    rows: list[list[Cell]] = []
    for case in QUICK_GRID if bed.quick else GRID:
        about: list[Cell] = [case.workers, case.partitions]
        live = Case(**{**vars(case), "live": True})
        try:
            one = bed.drain(live)
        except FAILURES as exc:
            said = str(exc).strip().splitlines()[0][:200]
            sys.stderr.write(f"{live}: {said}\n")
            rows.append([*about, f"failed: {said}", *[None] * 7])
            continue
        rows.append(
            [
                *about, 1e6 * one.worker_s / one.rows, 1e6 * one.broker_s / one.rows,
                one.rows / one.wall_s, one.commits / one.wall_s, one.rows / max(1, one.commits),
                one.ready_s, one.resident_bytes / MB, f"{one.others:.0%}",
            ]
        )  # fmt: skip
    text = (
        "1,000 devices send 10 rows a message as fast as one process makes them while the workers "
        "read: the devices' process, the broker and the workers share the machine, so rows/s are "
        "no speed of a worker. Ready: from the start of the processes until each owns partitions, "
        "with the imports and every rebalance."
    )
    columns = ["workers", "partitions", "workers, CPU s per 1M rows", "broker, CPU s per 1M rows",
               "rows/s", "commits/s", "rows a commit", "s until ready", "workers' MB",
               "others' load"]  # fmt: skip
    results.tables.append(Table("Workers and partitions", text, columns, rows))
