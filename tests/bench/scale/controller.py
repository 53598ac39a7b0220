"""A fleet's states and reports, read by a real controller from its start to its first snapshot."""

from pathlib import Path

from tests.bench.control.__main__ import (
    HOUR_US,
    Started,
    fill,
    names_of,
    reports,
    set_up,
    started,
    states,
)
from tests.bench.report import Cell, Results, Table
from tests.bench.scale.drains import Bed
from tests.bench.scale.fit import fit
from tests.fakes.own_task import TINY

# Devices, states of each on `fleet`, reports of each on `windows`.
CASES = (
    (1_000, 1, 0), (1_000, 40, 0), (1_000, 1, 40), (10_000, 1, 0), (10_000, 10, 0), (10_000, 1, 4),
    (100_000, 1, 0), (100_000, 2, 0),
)  # fmt: skip
QUICK = ((1_000, 1, 0), (1_000, 20, 0), (1_000, 1, 20), (5_000, 1, 0))
BEGIN_US = 1_767_571_200_000_000
MB = 1e6


def controller(bed: Bed, results: Results) -> None:
    """CPU, memory and time of a start without a snapshot, and lines through them."""
    rows: list[list[Cell]] = []
    cpu, memory = [], []
    for case in QUICK if bed.quick else CASES:
        devices, each, told = case
        with bed.watched() as load:
            at = _start(bed, *case)
        about: list[Cell] = [f"{devices:,}", each, told]
        if at is None:
            rows.append([*about, "failed: no snapshot in 600 s", *[None] * 3])
            continue
        x = devices, devices * each, devices * told
        cpu.append((x, [at.found.cpu_s]))
        memory.append(((devices,), [at.found.peak_bytes]))
        rows.append(
            [*about, at.wall_s, at.found.cpu_s, at.found.peak_bytes / MB, f"{load.others:.0%}"]
        )
    text = (
        "`tidewheel controller` without a snapshot to start from, until it has published its "
        "first one: it has read everything then. States and reports are made up, as by "
        "`python -m tests.bench.control`."
    )
    columns = ["devices", "states of each", "reports of each", "s to the first snapshot", "CPU s",
               "peak MB", "others' load"]  # fmt: skip
    results.tables.append(Table("The controller", text, columns, rows))
    made, grown = fit(cpu), fit(memory)
    costs: list[list[Cell]] = [
        ["CPU, µs a device", 1e6 * made.slopes[0].median, made.verdict],
        ["CPU, µs a state", 1e6 * made.slopes[1].median, made.verdict],
        ["CPU, µs a report", 1e6 * made.slopes[2].median, made.verdict],
        ["CPU s without any", made.intercept.median, made.verdict],
        ["peak bytes a device", grown.slopes[0].median, grown.verdict],
        ["peak bytes without any", grown.intercept.median, grown.verdict],
    ]
    text = "Least squares of relative distances over the rows of the table before; one run each."
    results.tables.append(Table("Costs of the controller", text, ["", "measured", "fit"], costs))


def _start(bed: Bed, devices: int, each: int, told: int) -> Started | None:
    """Fill topics of a task of its own, and start a controller on them."""
    folder = bed.stage.new_folder("controller")
    folder.mkdir(parents=True)
    name = f"fleet-{devices}-{each}-{told}"
    (folder / "task.py").write_text(
        "import dataclasses\nfrom tidewheel import load_task\n"
        f"task = dataclasses.replace(load_task({TINY!r}), name={name!r})\n"
    )
    reference, broker = f"{Path(folder) / 'task.py'}:task", bed.stage.settings
    model, names = set_up(reference, folder / "state", broker), names_of(devices)
    for turn in range(told):
        fill(broker, name, reports(name, model, names, BEGIN_US + turn * HOUR_US))
    fill(broker, name, states(name, model, names, each, 3000))
    words = [reference, "--state", str(folder / "state"), "--kafka", broker.bootstrap]
    return started(broker, name, words)
