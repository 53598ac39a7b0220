"""The schedules of a state folder, in its queue's database.

An interval is queued in two numbered steps:

1. it is due: the cursor of its schedule stands at its start, and its end is over
2. in one transaction the cursor moves to its end, the interval is noted, and its job is queued

A crash before 2 leaves it due, after 2 it is queued: the job's id and folder follow from schedule
and interval, and the job is submitted by its first attempt. A noted interval is not queued again.

cronsim 2.8 (November 2026, no dependencies) has Debian cron's rules for daylight saving: a time
that does not exist fires when the gap ends, one that exists twice fires at the first. On
`30 2 * * *` in Europe/Madrid croniter 7.0.0 and APScheduler 3.11.3 fire twice on the day in
October. From a time inside the second of two equal hours cronsim first gives one in the first,
which is over: it is asked from REPEATED before, and what is over is left out.
"""

import hashlib
import re
import sqlite3
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.queue.job_queue import Entry, JobQueue, rows_of, writing
from streams.batch.records.specification import Settings
from streams.contract.errors import UsageError
from streams.runtime.failpoints import Failpoint, unarmed

REPEATED = 3 * 3_600_000_000  # more than a clock was ever set back, in microseconds
LOOK_BACK = tuple(timedelta(days=days) for days in (1, 32, 366, 9 * 366))
DIRECTIVES = "YymdjFHIMSTfpzZaAbBUWuwGV%"
TOKEN = re.compile(r"\{\{|\}\}|\{(start|end)(?::([^{}]+))?\}|[{}]")
Interval = tuple[int, int]  # of event time in microseconds: from the first to before the second


@dataclass(frozen=True)
class Cron:
    """A cron expression of five fields in a zone."""

    expression: str
    timezone: str

    def check(self) -> None:
        """Raise UsageError for what is no expression or no zone, or never fires."""
        if len(self.expression.split()) != 5:
            raise UsageError(f"--cron {self.expression!r}: write five fields, as '0 2 * * *'")
        try:
            next(CronSim(self.expression, datetime.now(self.zone)))
        except CronSimError as exc:
            raise UsageError(f"--cron {self.expression!r}: {exc}") from exc
        except StopIteration as exc:
            raise UsageError(f"--cron {self.expression!r} never fires") from exc

    @property
    def zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise UsageError(
                f"--timezone {self.timezone}: no such zone; write one as Europe/Madrid or UTC"
            ) from exc

    def after(self, time_us: int) -> Iterator[int]:
        """Yield all times after that one at which it fires."""
        for fire in map(micros, CronSim(self.expression, local(time_us - REPEATED, self.zone))):
            if fire > time_us:
                yield fire

    def last(self, time_us: int) -> int | None:
        """Return the last time up to that one at which it fires; None if that is long ago."""
        for span in LOOK_BACK:
            begin = time_us - span // timedelta(microseconds=1)
            found = deque(self._until(begin, time_us), maxlen=1)
            if found:
                return found[0]
        return None

    def intervals(self, begin_us: int, end_us: int) -> Iterator[Interval]:
        """Yield the intervals between neighbouring fires from `begin_us`, a fire, on, that have
        ended at `end_us`."""
        yield from pairwise([begin_us, *self._until(begin_us, end_us)])

    def _until(self, begin_us: int, end_us: int) -> Iterator[int]:
        for fire in self.after(begin_us):
            if fire > end_us:
                return
            yield fire


def local(time_us: int, zone: ZoneInfo) -> datetime:
    """Return a time in a zone."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).astimezone(zone)


def micros(time: datetime) -> int:
    """Return an aware time in microseconds since 1970."""
    return (time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def fill(text: str, start: datetime, end: datetime) -> str:
    """Return a word with the times of an interval: {start} and {end} in ISO 8601 with the offset,
    {start:%Y-%m-%d} as strftime writes it, {{ and }} for braces. Nothing else is looked up; raise
    UsageError for other braces, and for letters that are not among the DIRECTIVES."""

    def filled(match: re.Match[str]) -> str:
        token, name, form = match[0], match[1], match[2]
        if token in ("{{", "}}"):
            return token[0]
        if name is None:
            raise UsageError(
                f"{text!r}: write {{start}}, {{end}} or {{start:%Y-%m-%d}}; a brace is written "
                "twice"
            )
        time = start if name == "start" else end
        for directive in re.findall(r"%(.?)", form or "", re.DOTALL):
            if not directive or directive not in DIRECTIVES:
                raise UsageError(f"{text!r}: %{directive} is none of %{' %'.join(DIRECTIVES)}")
        return time.strftime(form) if form else time.isoformat()

    return TOKEN.sub(filled, text)


# --- the schedules of a state folder ------------------------------------------------------------

NOT_RUN = ("Failed", "Expired", "Stopped")


@dataclass(frozen=True)
class Schedule:
    """`settings` have {start} and {end}; `cursor_us` is the end of the last interval that was
    decided; `skipped` are the last intervals that were left out, `problem` is why none is queued.
    """

    name: str
    cron: Cron
    settings: Settings
    created_us: int
    cursor_us: int
    max_catch_up: int
    problem: str = ""
    skipped: str = ""

    def entry(self, interval: Interval, state: Path, now: int) -> Entry:
        """Return the job of an interval: the same one each time."""
        start, end = (local(time, self.cron.zone) for time in interval)
        about = f"{self.name}\0{self.created_us}\0{interval[0]}"
        identity = hashlib.sha256(about.encode()).hexdigest()[:12]
        name = f"{start:%Y%m%dT%H%M%S%z}-{identity[:4]}.job"
        folder = state.absolute() / "schedules" / self.name / name
        settings = self.settings.mapped(lambda text: fill(text, start, end)).changed(job=folder)
        after = settings.expires_after
        expires_us = None if after is None else now + int(after * 1e6)
        return Entry(identity, str(folder), settings, expires_us=expires_us)

    def span(self, interval: Interval) -> str:
        """Return an interval for a person."""
        start, end = (local(time, self.cron.zone).isoformat() for time in interval)
        return f"{start}..{end}"


@dataclass(frozen=True)
class Schedules:
    """The schedules of one queue."""

    queue: JobQueue
    reached: Failpoint = unarmed

    def all(self) -> list[Schedule]:
        rows = rows_of(self.queue.state, "SELECT * FROM schedules ORDER BY name")
        return [_schedule(row) for row in rows]

    def find(self, name: str) -> Schedule:
        found = next((one for one in self.all() if one.name == name), None)
        if found is None:
            raise UsageError(f"there is no schedule {name} in {self.queue.state}")
        return found

    def add(self, name: str, cron: Cron, settings: Settings, max_catch_up: int) -> Schedule:
        """Add a schedule, whose first interval begins with the last fire up to now."""
        cron.check()
        now = self.queue.now()
        cursor = cron.last(now)
        cursor = next(cron.after(now)) if cursor is None else cursor
        with writing(self.queue.state) as connection:
            if connection.execute("SELECT 1 FROM schedules WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"there is a schedule {name}: tidewheel schedule remove {name}")
            connection.execute(
                "INSERT INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, '', '')",
                (name, cron.expression, cron.timezone, settings.model_dump_json(), now, cursor,
                 max_catch_up),
            )  # fmt: skip
        return self.find(name)

    def remove(self, name: str) -> None:
        """Remove a schedule and its history; its jobs stay."""
        self.find(name)
        with writing(self.queue.state) as connection:
            connection.execute("DELETE FROM schedules WHERE name = ?", (name,))
            connection.execute("DELETE FROM intervals WHERE schedule = ?", (name,))

    def decided(self, name: str, most: int = 100) -> list[dict[str, Any]]:
        """Return the last intervals that were queued, the newest first, with what became of their
        jobs."""
        query = "SELECT * FROM intervals WHERE schedule = ? ORDER BY start_us DESC LIMIT ?"
        found = rows_of(self.queue.state, query, name, most)
        for row in found:
            status = JobFolder(Path(row["folder"])).state()
            waits = status.state == "Submitted" and self.queue.entry(row["job"])
            row |= {"state": "Scheduled" if waits else status.state, "reason": status.reason}
        return found

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
                with writing(self.queue.state) as connection:
                    _change(connection, schedule, "problem", problem)
                if problem:
                    yield f"schedule {schedule.name} waits: {problem}"

    def _fire(self, schedule: Schedule) -> Iterator[str]:
        """Queue what has ended since the cursor; a clock that was set back makes nothing due."""
        now = self.queue.now()
        found = list(schedule.cron.intervals(schedule.cursor_us, now))
        skipped, found = found[: -schedule.max_catch_up], found[-schedule.max_catch_up :]
        if skipped:
            whole = skipped[0][0], skipped[-1][1]
            text = f"{len(skipped):,} intervals {schedule.span(whole)}"
            with writing(self.queue.state) as connection:
                if not _moved(connection, schedule, whole):
                    return  # another runner has done it
                _change(connection, schedule, "skipped", text)
            yield f"schedule {schedule.name} skips {text}: more than --max-catch-up were due"
        for interval in found:
            self.reached("schedule-step-1")
            entry = schedule.entry(interval, self.queue.state, now)
            with writing(self.queue.state) as connection:
                if not _moved(connection, schedule, interval):
                    return
                queued = self._queue(connection, schedule, interval, entry)
            self.reached("schedule-step-2")
            if queued:
                about = f"{schedule.span(interval)} as {entry.id}"
                yield f"schedule {schedule.name} queues {about}"

    def backfill(
        self, name: str, begin_us: int, end_us: int, max_active: int
    ) -> tuple[list[Entry], int]:
        """Queue the intervals within a time that have ended and have not run, at most so many of
        them at once; return their jobs, and how many have run already."""
        schedule, now = self.find(name), self.queue.now()
        first = next(schedule.cron.after(begin_us - 1), None)
        found = [] if first is None else schedule.cron.intervals(first, min(end_us, now))
        done, left_out = [], 0
        for interval in found:
            plain = schedule.entry(interval, self.queue.state, now)
            entry = replace(plain, expires_us=None, part_of=f"{name}/{now}", max_active=max_active)
            with writing(self.queue.state) as connection:
                queued = self._queue(connection, schedule, interval, entry)
            if queued and entry.job.folder.exists():  # it failed before it had a specification
                entry.job.write_state("Scheduled")
            done += [entry] if queued else []
            left_out += not queued
        return done, left_out

    def _queue(
        self, connection: sqlite3.Connection, schedule: Schedule, interval: Interval, entry: Entry
    ) -> bool:
        """Queue the job of an interval, unless that has run, runs or waits."""
        about = schedule.name, interval[0]
        query, job = "SELECT 1 FROM intervals WHERE schedule = ? AND start_us = ?", entry.job
        known = connection.execute(query, about).fetchone()
        if known and (job.state().state not in NOT_RUN or job.submitted):
            return False
        self.queue.insert(connection, entry)
        connection.execute(
            "INSERT OR REPLACE INTO intervals VALUES (?, ?, ?, ?, ?)",
            (*about, interval[1], entry.id, entry.folder),
        )
        return True


def _schedule(found: dict[str, str]) -> Schedule:
    cron = Cron(found.pop("cron"), found.pop("timezone"))
    settings = Settings.decode(found.pop("settings").encode())
    return Schedule(cron=cron, settings=settings, **found)  # type: ignore[arg-type]


def _moved(connection: sqlite3.Connection, schedule: Schedule, interval: Interval) -> bool:
    """Move the cursor over an interval; False if it does not stand at its start any more."""
    done = connection.execute(
        """UPDATE schedules SET cursor_us = ?
           WHERE name = ? AND created_us = ? AND cursor_us = ?""",
        (interval[1], schedule.name, schedule.created_us, interval[0]),
    )
    return done.rowcount == 1


def _change(connection: sqlite3.Connection, schedule: Schedule, column: str, text: str) -> None:
    connection.execute(f"UPDATE schedules SET {column} = ? WHERE name = ?", (text, schedule.name))
