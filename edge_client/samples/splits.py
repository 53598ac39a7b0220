"""Which segments are learned from and which are held out to evaluate on.

Every fourth window of event time is held out: segments that lie wholly in it are never trained on.
Segments that straddle a border are used for neither.
"""

from streams.contract.task import Task

TRAIN, HELD_OUT, NEITHER = 0, 1, 2


def split_of(task: Task, first_us: int, last_us: int) -> int:
    """TRAIN, HELD_OUT or NEITHER for a segment's first and last event time."""
    held = [(t // task.window_us) % 4 == 3 for t in (first_us, last_us)]
    if all(held):
        return HELD_OUT
    return NEITHER if any(held) else TRAIN


def split_period_us(task: Task) -> int:
    """A shift of event time by this much leaves every segment's split as it is."""
    return 4 * task.window_us
