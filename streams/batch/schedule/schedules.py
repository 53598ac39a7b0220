"""The schedules of a state folder, in its queue's database.

An interval is queued in two numbered steps:

1. it is due: the cursor of its schedule stands at its start, and its end is over
2. in one transaction the cursor moves to its end, the interval is noted, and its job is queued

A crash before 2 leaves it due, after 2 it is queued: the job's id and folder follow from schedule
and interval, and the job is submitted by its first attempt. A noted interval is not queued again.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streams.batch.jobs.job_folder import JobFolder, now_us
from streams.batch.queue.database import reading, writing
from streams.batch.queue.entries import NewEntry, RunOptions
from streams.batch.queue.job_queue import MAX_WAITING, insert
from streams.batch.schedule.cron import Cron, Interval, due
from streams.batch.schedule.records import Decided, Schedule, schedule_of, span
from streams.contract.errors import UsageError
from streams.runtime.failpoints import Failpoint, unarmed

SKIPPED = "Skipped"
NOT_RUN = (SKIPPED, "Failed", "Expired", "Stopped")


@dataclass(frozen=True)
class Schedules:
    """The schedules of one state folder."""

    state: Path
    now: Callable[[], int] = now_us
    reached: Failpoint = unarmed
    max_waiting: int = MAX_WAITING

    def all(self) -> list[Schedule]:
        with reading(self.state) as found:
            if found is None:
                return []
            rows = found.execute("SELECT * FROM schedules ORDER BY name").fetchall()
        return [schedule_of(row) for row in rows]

    def find(self, name: str) -> Schedule:
        found = next((one for one in self.all() if one.name == name), None)
        if found is None:
            raise UsageError(f"there is no schedule {name} in {self.state}")
        return found

    def add(
        self, name: str, cron: Cron, options: RunOptions, max_catch_up: int, priority: int = 0,
        expires_s: float | None = None,
    ) -> Schedule:  # fmt: skip
        """Add a schedule, whose first interval begins with the last fire up to now."""
        cron.check()
        now = self.now()
        cursor = cron.last(now)
        cursor = next(cron.after(now)) if cursor is None else cursor
        with writing(self.state) as connection:
            if connection.execute("SELECT 1 FROM schedules WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"there is a schedule {name}: tidewheel schedule remove {name}")
            connection.execute(
                """INSERT INTO schedules (name, cron, timezone, options, created_us, cursor_us,
                   max_catch_up, priority, expires_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (name, cron.expression, cron.timezone, options.model_dump_json(), now, cursor,
                 max_catch_up, priority, expires_s),
            )  # fmt: skip
        return self.find(name)

    def remove(self, name: str) -> None:
        """Remove a schedule and its history; its jobs stay."""
        self.find(name)
        with writing(self.state) as connection:
            connection.execute("DELETE FROM schedules WHERE name = ?", (name,))
            connection.execute("DELETE FROM intervals WHERE schedule = ?", (name,))

    def decided(self, name: str, most: int = 100) -> list[Decided]:
        """Return the last intervals that were decided, the newest first."""
        with reading(self.state) as found:
            if found is None:
                return []
            rows = found.execute(
                """SELECT start_us, end_us, job, folder, state, reason FROM intervals
                   WHERE schedule = ? ORDER BY start_us DESC LIMIT ?""",
                (name, most),
            ).fetchall()
        return [Decided(**dict(row)) for row in rows]

    # --- intervals are queued ---------------------------------------------------------------------

    def fire(self) -> Iterator[str]:
        """Queue all intervals that are due; yield a line for each, and for what is skipped."""
        for schedule in self.all():
            try:
                yield from self._fire(schedule)
                problem = ""
            except UsageError as exc:  # too many wait: later
                problem = str(exc)
            if problem != schedule.problem:
                self._note(schedule, problem)
                if problem:
                    yield f"schedule {schedule.name} waits: {problem}"

    def _fire(self, schedule: Schedule) -> Iterator[str]:
        now = self.now()
        found = due(schedule.cron, schedule.cursor_us, now, schedule.max_catch_up)
        if found.skipped is not None and self._skip(schedule, found.skipped, found.skipped_count):
            yield (
                f"schedule {schedule.name} skips {found.skipped_count:,} intervals "
                f"{span(schedule, found.skipped)}: more than --max-catch-up were due"
            )
        for interval in found.intervals:
            self.reached("schedule-step-1")
            with writing(self.state) as connection:
                if not _moved(connection, schedule, interval):
                    return  # another runner has done it
                entry = schedule.entry(interval, self.state, now)
                queued = self._queue(connection, schedule, interval, entry)
            self.reached("schedule-step-2")
            if queued:
                yield f"schedule {schedule.name} queues {span(schedule, interval)} as {entry.id}"

    def backfill(
        self, name: str, begin_us: int, end_us: int, max_active: int
    ) -> tuple[list[NewEntry], int]:
        """Queue the intervals within a time that have ended and have not run, at most so many of
        them at once; return their jobs, and how many have run already."""
        schedule, now = self.find(name), self.now()
        first = next(schedule.cron.after(begin_us - 1), None)
        found = [] if first is None else schedule.cron.intervals(first, min(end_us, now))
        part_of = f"{name}/{now}"
        done, left_out = [], 0
        for interval in found:
            plain = schedule.entry(interval, self.state, now)
            entry = NewEntry(
                plain.id, plain.folder, plain.options, plain.priority, None, part_of, max_active
            )
            with writing(self.state) as connection:
                queued = self._queue(connection, schedule, interval, entry)
            done += [entry] if queued else []
            left_out += not queued
        return done, left_out

    def newest(self, name: str) -> Interval | None:
        """Return the interval that has ended last."""
        cron = self.find(name).cron
        end = cron.last(self.now())
        start = None if end is None else cron.last(end - 1)
        return None if start is None or end is None else (start, end)

    def _queue(
        self, connection: sqlite3.Connection, schedule: Schedule, interval: Interval,
        entry: NewEntry,
    ) -> bool:  # fmt: skip
        """Queue the job of an interval, unless that has run, runs or waits."""
        row = connection.execute(
            "SELECT * FROM intervals WHERE schedule = ? AND start_us = ?",
            (schedule.name, interval[0]),
        ).fetchone()
        if row is not None:
            if row["state"] not in NOT_RUN or JobFolder(Path(entry.folder)).submitted:
                return False
            _forget(connection, row, interval)
        insert(connection, entry, self.max_waiting, self.now(), self.state)
        _decide(connection, schedule, interval, "Scheduled", "", self.now(), entry)
        return True

    def _skip(self, schedule: Schedule, skipped: Interval, count: int) -> bool:
        with writing(self.state) as connection:
            if not _moved(connection, schedule, skipped):
                return False
            _decide(connection, schedule, skipped, SKIPPED, f"{count:,} intervals", self.now())
            return True

    def _note(self, schedule: Schedule, problem: str) -> None:
        with writing(self.state) as connection:
            connection.execute(
                "UPDATE schedules SET problem = ? WHERE name = ?", (problem, schedule.name)
            )


def _moved(connection: sqlite3.Connection, schedule: Schedule, interval: Interval) -> bool:
    """Move the cursor over an interval; False if it does not stand at its start any more."""
    done = connection.execute(
        """UPDATE schedules SET cursor_us = ?
           WHERE name = ? AND created_us = ? AND cursor_us = ?""",
        (interval[1], schedule.name, schedule.created_us, interval[0]),
    )
    return done.rowcount == 1


def _decide(
    connection: sqlite3.Connection, schedule: Schedule, interval: Interval, state: str, reason: str,
    now: int, entry: NewEntry | None = None,
) -> None:  # fmt: skip
    job = (None, None) if entry is None else (entry.id, entry.folder)
    connection.execute(
        "INSERT OR IGNORE INTO intervals VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (schedule.name, *interval, *job, state, reason, now),
    )


def _forget(connection: sqlite3.Connection, row: sqlite3.Row, interval: Interval) -> None:
    """Remove what was noted of an interval, and keep the rest of what was skipped with it."""
    about = (row["schedule"], row["start_us"])
    if row["end_us"] > interval[1]:
        connection.execute(
            "UPDATE intervals SET start_us = ? WHERE schedule = ? AND start_us = ?",
            (interval[1], *about),
        )
    else:
        connection.execute("DELETE FROM intervals WHERE schedule = ? AND start_us = ?", about)
