"""How many pedestrians pass a street sensor in the next hour: numbers, dated, hourly. Sensors learn
from what was counted an hour later."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.contract.task import Answered, Device, Outcome, Reading, Segment, Task, Training
from streams.tasks import akl

if TYPE_CHECKING:
    import torch

YEAR, HOURS = 2024, 6
WEEK = 7 * 24
CHANNELS = ("count", "week-ago", "hour-sin", "hour-cos", "day-sin", "day-cos")
PILOTS = (2, 9)
ROLES = {"pilot": PILOTS, "lab": (0, 5, 10, 13), "held-out": (3, 8, 17)}


def devices() -> list[Device]:
    """Return `sensor-00` to `sensor-20`: two pilots, four in the lab, three held out."""
    role = {number: name for name, numbers in ROLES.items() for number in numbers}
    return [Device(f"sensor-{n:02d}", role.get(n, "fleet")) for n in range(21)]  # type: ignore[arg-type]


def readings(device: str) -> Iterator[Reading]:
    """Yield a year, of pilots its first week, an hour each; counts are log(1 + n). An hour's label
    is the count of the next one, as `week-ago` is that hour's a week before."""
    times, counts = akl.series(akl.sensors()[number := int(device[-2:])], YEAR)
    hours = list(zip(map(int, times), counts, strict=True))[: WEEK if number in PILOTS else None]
    known = {time_us: math.log1p(count) for time_us, count in hours if count >= 0}
    for time_us in known:
        coming = time_us + akl.HOUR_US
        week_ago = known.get(coming - WEEK * akl.HOUR_US, known[time_us])
        hour = coming // akl.HOUR_US % 24 * math.tau / 24
        day = coming // (24 * akl.HOUR_US) % 7 * math.tau / 7
        cycle = (math.sin(hour), math.cos(hour), math.sin(day), math.cos(day))
        yield Reading(time_us, (known[time_us], week_ago, *cycle), known.get(coming))


def outcomes(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
    """Yield the truth of an hour's answer, and of no other, when the next one is counted."""
    before: Answered | None = None
    for now in answered:
        if before is not None and now.last_us - before.last_us == akl.HOUR_US:
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
    window_s=86_400, lateness_s=7200, idle_close_s=6, upload="segment",
    retrain=0.0, margin=0.0,  # new truth comes every hour: a run as often as budgets allow
    # Streets differ, and every sensor is in every round.
    training=Training(strategy="scaffold", label_share=0.0, central_epochs=10, samples=4096),
)  # fmt: skip
