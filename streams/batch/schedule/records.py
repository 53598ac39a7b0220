"""A schedule, and what was decided about its intervals."""

import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.batch.queue.entries import NewEntry, RunOptions
from streams.batch.schedule.cron import Cron, Interval, local
from streams.batch.schedule.template import fill


@dataclass(frozen=True)
class Schedule:
    """`options` has the words of `tidewheel score` with {start} and {end}; `cursor_us` is the end
    of the last interval that was decided."""

    name: str
    cron: Cron
    options: RunOptions
    created_us: int
    cursor_us: int
    max_catch_up: int
    priority: int = 0
    expires_s: float | None = None
    problem: str = ""

    def entry(self, interval: Interval, state: Path, now: int) -> NewEntry:
        """Return the job of an interval: the same one each time."""
        start, end = (local(time, self.cron.zone) for time in interval)
        words = [fill(word, start, end) for word in self.options.words or []]
        report = self.options.report and fill(self.options.report, start, end)
        about = f"{self.name}\0{self.created_us}\0{interval[0]}"
        identity = hashlib.sha256(about.encode()).hexdigest()[:12]
        folder = f"{start:%Y%m%dT%H%M%S%z}-{identity[:4]}.job"
        return NewEntry(
            identity,
            str(state.absolute() / "schedules" / self.name / folder),
            self.options.model_copy(update={"words": words, "report": report}),
            self.priority,
            None if self.expires_s is None else now + int(self.expires_s * 1e6),
        )


@dataclass(frozen=True)
class Decided:
    """An interval as it was decided; `count` is of intervals that were skipped as one."""

    start_us: int
    end_us: int
    job: str | None
    folder: str | None
    state: str
    reason: str


def span(schedule: Schedule, interval: Interval) -> str:
    """Return an interval for a person."""
    start, end = (local(time, schedule.cron.zone).isoformat() for time in interval)
    return f"{start}..{end}"


def schedule_of(row: sqlite3.Row) -> Schedule:
    found: dict[str, Any] = dict(row)
    cron = Cron(found.pop("cron"), found.pop("timezone"))
    options = RunOptions.decode(found.pop("options").encode())
    return Schedule(cron=cron, options=options, **found)
