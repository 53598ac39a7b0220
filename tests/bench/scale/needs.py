"""From a run's tables to slopes, and from those to what fleets need: `python -m
tests.bench.scale.needs` writes the tables of docs/architecture/scale.md again from
docs/benchmarks/scale.json.
"""

import math
from collections.abc import Sequence

from streams.runtime.disk import write_atomic
from streams.worker.settings import WorkerSettings
from tests.bench import pages
from tests.bench.report import Cell, Figure, Results, Table, number, render
from tests.bench.scale.fleet import Fleet, Per, Slopes, breaks, needs

PAGE = pages.ROOT / "docs" / "architecture" / "scale.md"
BEGIN, END = "<!-- figures of docs/benchmarks/scale.json -->", "<!-- end of the figures -->"
TITLES = ("A million devices", "What gives way first")
LATENESS_S = 5.0
FLEETS = {
    "a message an event": Fleet(lateness_s=LATENESS_S),
    "50 events a message": Fleet(lateness_s=LATENESS_S, events_per_message=50),
    "5 % of the events, each a message": Fleet(lateness_s=LATENESS_S, events_sent=0.05),
}
UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
MICRO, MILLI, MB = 1e-6, 1e-3, 1e6


def cell(results: Results, title: str, row: str, column: str) -> float:
    """Return a cell of a table, of several runs the median; raise KeyError for one that is not
    there."""
    for table in results.tables:
        if table.title == title:
            for cells in table.rows:
                if str(cells[0]) == row:
                    return _value(cells[table.columns.index(column)])
    raise KeyError(f"{title}: {row}: {column}")


def column(results: Results, title: str, name: str) -> list[float]:
    """Return the numbers of a column, without the rows that failed."""
    table = next(table for table in results.tables if table.title == title)
    cells = [row[table.columns.index(name)] for row in table.rows]
    return [_value(one) for one in cells if isinstance(one, int | float | Figure)]


def _value(found: Cell) -> float:
    if isinstance(found, Figure):
        return found.median
    if not isinstance(found, int | float):
        raise KeyError(f"{found!r} is no figure")
    return float(found)


def _per(results: Results, factor: float, *rows: str) -> Per:
    def total(name: str) -> float:
        return factor * sum(cell(results, "Costs", row, name) for row in rows)

    return Per(total("a message"), total("a row"), total("a window"))


def slopes_of(results: Results) -> Slopes:
    """Return the slopes that a whole run has measured; each cell that is used is named here."""
    draining, sending = (
        "broker's CPU while the worker drains, µs",
        "broker's CPU while devices send, µs",
    )
    busy = zip(
        column(results, "Shapes", "rows/s"),
        column(results, "Shapes", "worker, CPU s per 1M rows"),
        strict=True,
    )

    def control(row: str) -> float:
        return cell(results, "Costs of the controller", row, "measured")

    waiting = "Memory of a waiting message"
    return Slopes(
        worker=_per(results, MICRO, "worker's CPU, µs"),
        broker=_per(results, MICRO, draining, sending),
        worker_cores=max(rows_per_s * cpu_s / 1e6 for rows_per_s, cpu_s in busy),
        topics=_per(results, 1.0, "bytes on `events`", "bytes on `scores`", "bytes on `windows`"),
        store=_per(results, 1.0, "bytes of the store"),
        commits_per_s=max(column(results, "Writers of one table", "commits/s in all")),
        flush_s=float(WorkerSettings.__dataclass_fields__["flush_s"].default),
        device_bytes=cell(results, "Memory of a device", "bytes a device", "measured"),
        worker_bytes=cell(results, "Memory of a device", "bytes without any", "measured"),
        row_bytes=cell(results, "Costs", "bytes on `events`", "a row"),
        message_bytes=cell(results, waiting, "bytes a waiting message, as counted", "bytes"),
        buffer_bytes=float(WorkerSettings.__dataclass_fields__["buffer_bytes"].default),
        state_s=MICRO * control("CPU, µs a state"),
        report_s=MICRO * control("CPU, µs a report"),
        controller_bytes=control("peak bytes without any"),
        controller_device_bytes=control("peak bytes a device"),
        start_device_s=MICRO * (control("CPU, µs a device") + control("CPU, µs a state")),
    )


def million(results: Results) -> None:
    """Add the tables of what fleets of a million devices need."""
    slopes = slopes_of(results)
    found = [needs(slopes, fleet) for fleet in FLEETS.values()]
    rows: list[list[Cell]] = [
        [first[0].what, *[amount(one.value, one.unit) for one in first], first[0].formula]
        for first in zip(*found, strict=True)
    ]
    fleet = next(iter(FLEETS.values()))
    text = (
        f"{fleet.devices:,} devices, {fleet.events_per_s:g} event a second each, windows of "
        f"{fleet.window_s:g} s and lateness of {fleet.lateness_s:g} s, a heartbeat each "
        f"{fleet.heartbeat_s:g} s, a federated round a day. Arithmetic on the slopes of this page, "
        f"no measurement; {fleet.busy:.0%} of a core, or of a bound, is planned with. Rows of 2 x "
        "20 float32 and a linear teacher; one broker without copies; one machine."
    )
    results.tables.append(Table(TITLES[0], text, ["", *FLEETS, "formula"], rows))
    at = [{what: (devices, why) for what, devices, why in breaks(slopes, one)}
          for one in FLEETS.values()]  # fmt: skip
    gives: list[list[Cell]] = [
        [what, *[_count(one[what][0]) for one in at], why] for what, (_, why) in at[0].items()
    ]
    text = "Devices at which each part is full, at all of its core or bound; sorted by the first."
    columns = ["", *FLEETS, "what is seen"]
    results.tables.append(Table(TITLES[1], text, columns, gives))


def _count(devices: float) -> str:
    return "never" if math.isinf(devices) else f"{_digits(devices):,.0f}"


def _digits(value: float) -> float:
    """Round to two digits: an extrapolation has no more."""
    return round(value, 1 - math.floor(math.log10(value))) if value else 0.0


def amount(value: float, unit: str) -> str:
    """Return a value with its unit: two digits, and prefixes of bytes."""
    if unit.startswith("bytes"):
        prefix, size = next(((p, s) for p, s in UNITS if value >= s), ("", 1.0))
        return f"{_digits(value / size):g} {prefix}{unit.replace('bytes', 'B', 1)}"
    if value < 10 and value != int(value):
        return f"{_digits(value):g} {unit}".strip()
    return f"{_digits(value):,.0f} {unit}".strip()


def written(text: str, results: Results) -> str:
    """Return a page's text with the tables between its marks as the results have them."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = Results({}, tables=[table for table in results.tables if table.title in TITLES])
    return f"{before}{BEGIN}\n{render(shown)}\n\n{END}{after}"


def quoted(results: Results, titles: Sequence[str] = TITLES) -> set[str]:
    """Return the texts of all cells of some tables."""
    rows = [row for table in results.tables if table.title in titles for row in table.rows]
    return {number(one) for row in rows for one in row}


if __name__ == "__main__":
    write_atomic(PAGE, written(PAGE.read_text(), pages.read("scale")).encode())
