"""What a source gives to the inference loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Skip = Callable[[str, int], None]  # (reason, time in microseconds) of what cannot be used


@dataclass(frozen=True)
class Cut:
    """A segment with its event times.

    `recorded_us` is its place in the data, the same in every pass: the time of its first reading
    as the source has it. `mark_us` is that of a replay, after which a restart goes on. Each segment
    has its own: it is the time of the segment, or one more than the segment before where that is
    not earlier.
    """

    first_us: int
    last_us: int
    recorded_us: int
    mark_us: int
    segment: np.ndarray
    truth: np.ndarray | None


class Source(Protocol):
    """Segments as they come; `passes_done` through a recording."""

    passes_done: int

    def __iter__(self) -> Iterator[Cut]: ...
