"""Channels that are more than a number: categories, and what follows from the time.

A channel is its name. Where a task names a `Category` or a `Time` in its channels, the values of a
reading become floats on the device, and what comes after knows no difference: a segment, an event
and a model's input have an index, which float32 holds exactly up to MOST_CATEGORIES.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Literal, Self, get_args

import numpy as np

UNKNOWN = 0  # the index of a category that a reading does not have
MOST_CATEGORIES = 2**24
TimeFeature = Literal["hour", "weekday", "since"]
FEATURES: tuple[str, ...] = get_args(TimeFeature)
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0


class Category(str):
    """A channel of names, as "merchant": the model gets an index from 0 to `size` - 1.

    With `names` their index is 1, 2, ... Else a name's index is 1 + CRC32 of its UTF-8 modulo
    (`size` - 1), on every device alike: new names need no list, and with `size` well above their
    number few share an index. A number is its text, 7 and 7.0 are "7". What is not in `names`, an
    empty text and None have the index 0.

    >>> from tidewheel import Category
    >>> Category("way", names=("card", "cash")).index_of("cash")
    2
    >>> merchant = Category("merchant", size=1000)
    >>> merchant.index_of(7) == merchant.index_of("7") > 0, merchant.index_of(None)
    (True, 0)
    """

    size: int
    names: tuple[str, ...]

    def __new__(cls, name: str, size: int = 0, names: Sequence[str] = ()) -> Self:
        made = super().__new__(cls, name)
        made.names = tuple(map(str, names))
        made.size = size or len(made.names) + 1
        return made

    def __getnewargs__(self) -> tuple[str, int, tuple[str, ...]]:  # type: ignore[override]
        return str(self), self.size, self.names

    def index_of(self, value: object) -> int:
        """Return the index of a value; ValueError for a list or an object."""
        if value is None or value == "":
            return UNKNOWN
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int | float):
            raise ValueError(f"{value!r} is not a name")
        return self._index(str(value))

    def _index(self, name: str) -> int:
        if not self.names:
            return 1 + zlib.crc32(name.encode()) % (self.size - 1)
        return self.names.index(name) + 1 if name in self.names else UNKNOWN


class Time(str):
    """A channel that follows from the readings' times; a reading has no value for it.

    "hour"     of the day, UTC, 0 to below 24, with fractions
    "weekday"  0 (Monday) to 6, UTC
    "since"    log(1 + seconds) since the reading before of this device that was not dropped as
               `not-finite`; 0 for the first one

    >>> from tidewheel import Time
    >>> Time("hour").of(90 * 60 * 1_000_000, None)
    1.5
    """

    def __new__(cls, feature: TimeFeature) -> Self:
        return super().__new__(cls, feature)

    def of(self, time_us: int, before_us: int | None) -> float:
        """Return the value at a time, microseconds since 1970; before_us: of the reading before."""
        if self == "hour":
            return time_us % DAY_US / HOUR_US
        if self == "weekday":
            return float((time_us // DAY_US + EPOCH_WEEKDAY) % 7)
        return math.log1p(max(0, time_us - before_us) / 1e6) if before_us is not None else 0.0


def given(channels: Sequence[str]) -> list[str]:
    """Return the channels that a reading has a value for."""
    return [channel for channel in channels if not isinstance(channel, Time)]


def is_plain(channels: Sequence[str]) -> bool:
    """Return whether every channel is a number that readings have."""
    return not any(isinstance(channel, Category | Time) for channel in channels)


def problem_of(channels: Sequence[str]) -> str | None:
    """Return what is wrong with the channels of a task."""
    for channel in channels:
        if isinstance(channel, Category):
            if not 2 <= channel.size <= MOST_CATEGORIES:
                return f"channel {channel} needs names, or a size from 2 to {MOST_CATEGORIES}"
            if channel.names and channel.size != len(set(channel.names)) + 1:
                return f"channel {channel} has a name twice, or names and another size"
        if isinstance(channel, Time) and channel not in FEATURES:
            return f"Time({str(channel)!r}) is not one of {', '.join(FEATURES)}"
    return None


def numbers(channels: Sequence[str], values: Sequence[object]) -> list[float]:
    """Return a reading's values, one a channel of `given`, as floats; TypeError or ValueError for
    what is not a value of its channel."""
    return [
        float(channel.index_of(value)) if isinstance(channel, Category) else float(value)  # type: ignore[arg-type]
        for channel, value in zip(channels, values, strict=True)
    ]


def complete(
    channels: Sequence[str], found: Sequence[float], time_us: int, before_us: int | None
) -> tuple[float, ...]:
    """Return the numbers of a reading, one a channel of `given`, with those of its time."""
    left = iter(found)
    return tuple(
        channel.of(time_us, before_us) if isinstance(channel, Time) else next(left)
        for channel in channels
    )


def example(channels: Sequence[str], count: int, samples: int, seed: int = 0) -> np.ndarray:
    """Return made-up segments (count, channels, samples) float32 that a model can answer: indices
    of categories, hours and weekdays, and else positive numbers, of which a model may take the
    logarithm."""
    dice = np.random.default_rng(seed)
    found = np.abs(dice.standard_normal((count, len(channels), samples)))
    most = {"hour": 24, "weekday": 7, "since": 2}
    for i, channel in enumerate(channels):
        if isinstance(channel, Category):
            found[:, i] = dice.integers(0, channel.size, (count, samples))
        elif isinstance(channel, Time):
            found[:, i] = dice.integers(0, most[channel], (count, samples))
    return found.astype(np.float32)
