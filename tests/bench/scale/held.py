"""Many devices whose windows are all open at once: messages that wait, and the bound on them."""

from streams.contract.events.records import encode_events
from streams.worker.commit.committer import OVERHEAD
from streams.worker.settings import WorkerSettings
from tests.bench.report import Cell, Results, Table
from tests.bench.scale.drains import Bed, Case
from tests.bench.scale.fit import fit
from tests.bench.streams.feed.generator import Source
from tests.bench.streams.subject import FAILURES

MESSAGES = 20  # of one row, of each device, before its window closes
SMALL_MB = 64  # a bound that 2,000 devices reach; the default takes eight times as many
# Devices, and the bound in MB, 0 for the default.
CASES, QUICK = ((500, 0), (2_000, 0), (2_000, SMALL_MB)), ((200, 0), (500, 0))
MB = 1e6


def held(bed: Bed, results: Results) -> None:
    """Devices that all send MESSAGES single events into one window each, then close it."""
    rows: list[list[Cell]] = []
    points = []
    plan = bed.plan(Case())
    one = Source(plan.load_task(), 1).events("device-00000", 0, plan.times_us(0, 0)[:1])
    counted = len(encode_events(one)[1] or b"") + OVERHEAD
    default = int(WorkerSettings.__dataclass_fields__["buffer_bytes"].default)
    for devices, buffer_mb in QUICK if bed.quick else CASES:
        bound = buffer_mb * 1_000_000 or default
        case = Case(partitions=1, devices=devices, rounds=MESSAGES, per_message=1, phase=0.0,
                    buffer_mb=buffer_mb)  # fmt: skip
        waiting = devices * (MESSAGES - 1)
        try:
            got = bed.drain(case, timeout_s=480.0)
        except FAILURES as exc:
            said = str(exc).strip().splitlines()[0][:200]
            about: list[Cell] = [f"{devices:,}", bound / MB, waiting, waiting * counted / bound]
            rows.append([*about, f"failed: {said}", *[None] * 4])
            continue
        if waiting * counted < bound:
            points.append(((waiting,), [got.peak_bytes]))
        rows.append(
            [
                f"{devices:,}", bound / MB, waiting, waiting * counted / bound, got.peak_bytes / MB,
                got.windows, got.revisions, got.rows / got.wall_s, f"{got.others:.0%}",
            ]
        )  # fmt: skip
    text = (
        f"Messages of one event, {MESSAGES} of each device; all but the last are in one window "
        "that only the last one closes. One partition, which has them in the order of their times. "
        f"A message is held until its rows are stored. Counted: its value and {OVERHEAD:,} bytes, "
        f"together {counted:,}, against `--buffer-mb` ({int(default / MB)} by default). At the "
        "bound windows close early: their devices' later rows are revisions."
    )
    columns = ["devices", "--buffer-mb", "messages that wait", "counted, of the bound",
               "worker's peak MB", "reports", "of them revisions", "rows/s",
               "others' load"]  # fmt: skip
    results.tables.append(Table("Open windows", text, columns, rows))
    made = fit(points)
    costs: list[list[Cell]] = [
        ["bytes a waiting message, as counted", counted, ""],
        ["bytes a waiting message, growth of the peak", made.slopes[0], made.verdict],
        ["bytes without any", made.intercept, made.verdict],
    ]
    text = "A line through the peaks of the rows that are below the bound; a device is 19 messages."
    results.tables.append(Table("Memory of a waiting message", text, ["", "bytes", "fit"], costs))
