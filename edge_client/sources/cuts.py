"""What a source gives to the inference loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Skip = Callable[[str, int], None]  # (reason, time in microseconds) of what cannot be used


@dataclass(frozen=True)
class Cut:
    """A segment with its event times; `position_us` is its place in the data, in every pass."""

    first_us: int
    last_us: int
    position_us: int
    segment: np.ndarray
    truth: np.ndarray | None


class Source(Protocol):
    """Segments as they come. `passes_done` and `share_of_pass` are the progress of a recording."""

    passes_done: int
    share_of_pass: float

    def __iter__(self) -> Iterator[Cut]: ...
