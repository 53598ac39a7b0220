"""Who drifts, when and how, in the task `pedestrians`: streets that are closed, sensors moved."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from streams.contract.task import Reading
from streams.tasks import akl
from streams.tasks.pedestrians import WEEK
from tests.bench.gains.drift.draws import SEED, Draw

AFTER = (28, 120)  # days from the release before the drift to its begin
CLOSED = (0.05, 0.3)  # what is left of the counts
A_STREET_CLOSED, A_SENSOR_MOVED = "a street closed", "a sensor moved"

Hours = dict[int, float]  # log counts by time in microseconds


def drawn(number: int, fleet: Sequence[str]) -> Draw:
    dice = np.random.default_rng([SEED, number])
    count, after = int(dice.integers(1, len(fleet) // 3 + 1)), int(dice.integers(*AFTER))
    how = str(dice.choice([A_STREET_CLOSED, A_SENSOR_MOVED]))
    who = sorted(str(name) for name in dice.choice(list(fleet), count, replace=False))
    return Draw(number, how, tuple(who), after)


def closed(hours: Hours, from_us: int, dice: np.random.Generator) -> Hours:
    factor = dice.uniform(*CLOSED)
    return {
        at: math.log1p(round(math.expm1(count) * factor)) if at >= from_us else count
        for at, count in hours.items()
    }


def moved(hours: Hours, other: Hours, from_us: int) -> Hours:
    return {at: count for at, count in hours.items() if at < from_us} | {
        at: count for at, count in other.items() if at >= from_us
    }


def readings(hours: Hours, like: Sequence[Reading]) -> Iterator[Reading]:
    """The task's readings of other counts: with the cycles of `like`, by time."""
    cycles = {reading.time_us: tuple(reading.values)[2:] for reading in like}
    for at, count in hours.items():
        coming = at + akl.HOUR_US
        week_ago = hours.get(coming - WEEK * akl.HOUR_US, count)
        if at in cycles:
            yield Reading(at, (count, week_ago, *cycles[at]), hours.get(coming))
