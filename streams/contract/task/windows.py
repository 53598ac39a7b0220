"""How a device's events are grouped in event time: each event is scored in exactly one window.

`Tumbling` and `Sliding` are aligned: an event's time alone says its window. The others depend on
the events before, and are cut from events in the order of their times (streams.worker.windows.cut).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from streams.contract.errors import TaskError

LEAST_S = 1e-3
FULL = 2**62


class Before(NamedTuple):
    """A device's window before some events: its start, the event time of its last event, both in
    microseconds, and how many events it has; of one that is closed FULL.

    >>> from tidewheel import Before
    >>> Before(start_us=0, last_us=1_500_000, events=3).events
    3
    """

    start_us: int
    last_us: int
    events: int


@runtime_checkable
class Window(Protocol):
    """A kind of windows, for `Task.window`: `Tumbling`, `Session`, `Count`, `Sliding`, or your own.

    A window is named by the event time at which it starts. It may depend on the events before it,
    not on those after it.

    longest_s   how much event time a window may cover, seconds: open windows are held in memory

    >>> import numpy as np
    >>> from tidewheel import Session, Window
    >>> isinstance(Session(1800), Window)
    True
    """

    @property
    def longest_s(self) -> float: ...

    def starts(self, times_us: np.ndarray, after: Before | None = None, /) -> np.ndarray:
        """Return (n,) int64: the start of each event's window. times_us: (n,) int64, ascending;
        `after` is the window before all of them, which may continue."""
        ...

    def closes(self, start_us: int, last_us: int, events: int, /) -> int:
        """Return the event time after which no event joins a window with so many events."""
        ...

    def end(self, start_us: int, last_us: int, /) -> int:
        """Return the end that a closed window's report names, exclusive."""
        ...


@dataclass(frozen=True)
class Tumbling:
    """Windows of a fixed length, one after the other.

    >>> import numpy as np
    >>> from tidewheel import Tumbling
    >>> Tumbling(30).starts(np.array([0, 29_999_999, 30_000_000])).tolist()
    [0, 0, 30000000]
    """

    length_s: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def longest_s(self) -> float:
        return self.length_s

    def starts(self, times_us: np.ndarray, _after: Before | None = None, /) -> np.ndarray:
        return np.asarray(times_us - times_us % _us(self.longest_s))

    def closes(self, start_us: int, _last_us: int, _events: int, /) -> int:
        return start_us + _us(self.longest_s)

    def end(self, start_us: int, _last_us: int, /) -> int:
        return start_us + _us(self.longest_s)


@dataclass(frozen=True)
class Sliding(Tumbling):
    """A report every `hop_s`, of the last `length_s`: a multiple of it. An event is scored once, in
    the tumbling window of `hop_s` that holds it; its report has the sums of the last `length_s` as
    `sliding`.

    >>> from tidewheel import Sliding
    >>> Sliding(60, 10).longest_s
    10
    """

    hop_s: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hop_s > self.length_s or _us(self.length_s) % _us(self.hop_s):
            raise TaskError(
                f"window: Sliding needs a length_s that is a multiple of hop_s, not {self}"
            )

    @property
    def longest_s(self) -> float:
        return self.hop_s


@dataclass(frozen=True)
class Session:
    """Events of which each follows the one before within `gap_s`; cut after `longest_s`.

    >>> import numpy as np
    >>> from tidewheel import Session
    >>> Session(gap_s=5).starts(np.array([0, 4_000_000, 9_000_001])).tolist()
    [0, 0, 9000001]
    """

    gap_s: float
    longest_s: float = 86_400.0

    def __post_init__(self) -> None:
        _check(self)

    def starts(self, times_us: np.ndarray, after: Before | None = None, /) -> np.ndarray:
        gap, longest = _us(self.gap_s), _us(self.longest_s)
        found = np.empty_like(times_us)
        breaks = (np.flatnonzero(np.diff(times_us) > gap) + 1).tolist()
        for at, end in pairwise([0, *breaks, len(times_us)]):
            start = int(times_us[at]) if at < end else 0
            if at == 0 and after is not None and _goes_on(start, after, gap, longest):
                start = after.start_us
            for begin, stop, own in _cut(times_us, at, end, start, longest):
                found[begin:stop] = own
        return found

    def closes(self, start_us: int, last_us: int, _events: int, /) -> int:
        return min(last_us + _us(self.gap_s), start_us + _us(self.longest_s))

    def end(self, _start_us: int, last_us: int, /) -> int:
        return last_us + 1


@dataclass(frozen=True)
class Count:
    """`events` events, and those of the last one's time; fewer where they cover `longest_s`, or the
    device falls silent.

    >>> import numpy as np
    >>> from tidewheel import Count
    >>> Count(2).starts(np.array([0, 10, 20, 20, 20, 30])).tolist()
    [0, 0, 20, 20, 20, 30]
    """

    events: int
    longest_s: float = 86_400.0

    def __post_init__(self) -> None:
        _check(self)

    def starts(self, times_us: np.ndarray, after: Before | None = None, /) -> np.ndarray:
        found, at, longest = np.empty_like(times_us), 0, _us(self.longest_s)
        start, room = (after.start_us, self.events - after.events) if after else (0, 0)
        while at < len(times_us):
            if room <= 0 or times_us[at] > start + longest:
                start, room = int(times_us[at]), self.events
            last = times_us[min(at + room, len(times_us)) - 1]
            stop = np.searchsorted(times_us, min(last, start + longest), side="right")
            found[at:stop], at, room = start, int(stop), 0
        return found

    def closes(self, start_us: int, last_us: int, events: int, /) -> int:
        return last_us if events >= self.events else start_us + _us(self.longest_s)

    def end(self, _start_us: int, last_us: int, /) -> int:
        return last_us + 1


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _goes_on(first_us: int, before: Before, gap: int, longest: int) -> bool:
    return first_us - before.last_us <= gap and first_us - before.start_us <= longest


def _cut(
    times: np.ndarray, at: int, end: int, start: int, longest: int
) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and start of the windows of times[at:end], none of which covers more than
    `longest`; `start` is that of the first one."""
    while at < end:
        stop = at + int(np.searchsorted(times[at:end], start + longest, side="right"))
        yield at, stop, start
        at = stop
        start = int(times[at]) if at < end else start


def _check(window: object) -> None:
    """Raise TaskError for a field that is too small or no number."""
    for name, value in vars(window).items():
        least = 1 if name == "events" else LEAST_S
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or value < least or (least == 1 and value % 1):
            kind = "a whole number" if least == 1 else "a number"
            raise TaskError(
                f"window: {name} of {type(window).__name__} must be {kind} from {least:g}, "
                f"not {value!r}"
            )
