"""The split of segments into training and held-out ones.

Every fourth window of event time is held out: segments inside it are never trained on. Segments
that cross a border are used for neither. Of the held-out windows every second one chooses what
answers on the device; the others only report, so that nothing is judged by what it was chosen with.
"""

import numpy as np

from streams.contract.task import Task

TRAIN, HELD_OUT, NEITHER = 0, 1, 2


def split_of(task: Task, first_us: int, last_us: int) -> int:
    """Return TRAIN, HELD_OUT or NEITHER for a segment's first and last event time."""
    held = [(t // task.window_us) % 4 == 3 for t in (first_us, last_us)]
    if all(held):
        return HELD_OUT
    return NEITHER if any(held) else TRAIN


def reports(task: Task, times_us: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether held-out segments with these last event times only report."""
    return np.asarray((times_us // task.window_us) % 8 == 7)


def split_period_us(task: Task) -> int:
    """Return the period of the split in event time: shifting by it changes no segment's split."""
    return 8 * task.window_us
