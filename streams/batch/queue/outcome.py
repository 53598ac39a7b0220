"""What becomes of a job after an attempt. Pure."""

import random
from dataclasses import dataclass

from streams.batch.records.progress import JobState

MAX_PAUSE_S = 900.0


@dataclass(frozen=True)
class Retrying:
    """How often a job is tried that fails of what may pass, and the pause before the second try;
    each further pause is twice as long."""

    max_attempts: int = 5
    first_pause_s: float = 30.0

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures, of which no two jobs have the same."""
        pause = min(self.first_pause_s * 2.0 ** (min(failures, 64) - 1), MAX_PAUSE_S)
        return pause * random.uniform(0.75, 1.0)


@dataclass(frozen=True)
class Outcome:
    """`over`: the job leaves the queue; otherwise it waits again, after a pause."""

    over: bool
    pause_s: float = 0.0
    failed: bool = False


def outcome(status: JobState, *, stop_asked: bool, failures: int, retrying: Retrying) -> Outcome:
    """Return what becomes of a job in a state in which it ended; `failures` are earlier ones."""
    if status.state == "Stopped":  # by `jobs stop`, or with its runner
        return Outcome(over=stop_asked)
    if status.state == "Failed" and status.passing and failures + 1 < retrying.max_attempts:
        return Outcome(over=False, pause_s=retrying.pause_s(failures + 1), failed=True)
    return Outcome(over=True)
