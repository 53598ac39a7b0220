"""Schedules of a state folder, `<state>/schedules/<name>/schedule.json`, changed under one lock.

What is due, the intervals from the cursor of a schedule to now, is queued in three numbered steps:

1. a runner looks, and takes the lock
2. of an interval: its job is in the queue
3. the cursor moves to the end of the last one, and all are noted

A crash before 3 leaves them due. The job's id and folder follow from schedule and interval, so that
it is found in the queue, or submitted by its first attempt: it is not queued again, as one that is
noted.

cronsim 2.8 has Debian cron's rules for daylight saving: a time that does not exist fires when the
gap ends, one that exists twice at the first, where croniter 7.0.0 and APScheduler 3.11.3 fire
twice. From a time inside the second of two equal hours it first gives one in the first, which is
over: it is asked from REPEATED before, and what is over is left out.
"""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from streams.batch.jobs.job_folder import read_document
from streams.batch.jobs.job_queue import LOST, Entry, JobQueue, write_document
from streams.batch.specification import Settings
from streams.contract.errors import UsageError
from streams.runtime.failpoints import Failpoint, unarmed

REPEATED = 3 * 3_600_000_000  # more than a clock was ever set back, in microseconds
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
            text = f"--timezone {self.timezone}: no such zone; write one as Europe/Madrid or UTC"
            raise UsageError(text) from exc

    def after(self, time_us: int) -> Iterator[int]:
        """Yield all times after that one at which it fires."""
        for fire in map(micros, CronSim(self.expression, local(time_us - REPEATED, self.zone))):
            if fire > time_us:
                yield fire

    def last(self, time_us: int) -> int | None:
        """Return the last time up to that one at which it fires; None if there is none."""
        before = CronSim(self.expression, local(time_us + REPEATED, self.zone), reverse=True)
        return next((fire for fire in map(micros, before) if fire <= time_us), None)

    def intervals(self, begin_us: int, end_us: int) -> Iterator[Interval]:
        """Yield the intervals between neighbouring fires from `begin_us`, a fire, on, that have
        ended at `end_us`."""
        fires = takewhile(lambda fire: fire <= end_us, self.after(begin_us))
        yield from pairwise([begin_us, *fires])


def local(time_us: int, zone: ZoneInfo) -> datetime:
    """Return a time in a zone."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).astimezone(zone)


def micros(time: datetime) -> int:
    """Return an aware time in microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


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
CATCH_UP = 10  # intervals that are run after an outage
NOTED = 10_000  # intervals, the newest; of older ones the jobs' folders tell


@dataclass(frozen=True)
class Schedule:
    """`settings` have {start} and {end}; `cursor_us` is the end of the last interval that was
    decided; `skipped` are the last intervals that were left out, `problem` is why none is queued.
    `intervals` are the newest NOTED that were queued, their ends by their starts.
    """

    name: str
    cron: Cron
    settings: Settings
    created_us: int
    cursor_us: int
    problem: str = ""
    skipped: str = ""
    intervals: dict[int, int] = field(default_factory=dict)

    def entry(self, interval: Interval, state: Path) -> Entry:
        """Return the job of an interval: the same one each time."""
        start, end = (local(time, self.cron.zone) for time in interval)
        about = f"{self.name}\0{self.created_us}\0{interval[0]}"
        identity = hashlib.sha256(about.encode()).hexdigest()[:12]
        name = f"{start:%Y%m%dT%H%M%S%z}-{identity[:4]}.job"
        folder = state.absolute() / "schedules" / self.name / name
        settings = self.settings.mapped(lambda text: fill(text, start, end)).changed(job=folder)
        return Entry(identity, str(folder), settings)

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
        paths = sorted(self._folder.glob("*/schedule.json"))
        found = (self._read(path.parent.name) for path in paths)
        return [schedule for schedule in found if schedule is not None]

    def find(self, name: str) -> Schedule:
        if (found := self._read(name)) is None:
            raise UsageError(f"there is no schedule {name} in {self.queue.state}")
        return found

    def _read(self, name: str) -> Schedule | None:
        return read_document(self._folder / name / "schedule.json", Schedule, LOST)

    def add(self, name: str, cron: Cron, settings: Settings) -> Schedule:
        """Add a schedule, whose first interval begins with the last fire up to now."""
        cron.check()
        now = self.queue.now()
        begin = cron.last(now) or next(cron.after(now))
        with self._locked():
            if self._read(name) is not None:
                raise UsageError(f"there is a schedule {name}: tidewheel schedule remove {name}")
            return self.write(Schedule(name, cron, settings, now, begin))

    def remove(self, name: str) -> None:
        """Remove a schedule and its history; its jobs stay."""
        with self._locked():
            self.find(name)
            (self._folder / name / "schedule.json").unlink()

    def write(self, schedule: Schedule) -> Schedule:
        """Write a schedule; the caller holds the lock, or is alone."""
        write_document(self._folder / schedule.name / "schedule.json", schedule)
        return schedule

    def decided(self, schedule: Schedule, most: int = 100) -> list[dict[str, Any]]:
        """Return the last intervals that were queued, the newest first, with what became of their
        jobs."""
        rows = []
        for begin, end in sorted(schedule.intervals.items())[: -most - 1 : -1]:
            entry = schedule.entry((begin, end), self.queue.state)
            about = {"start_us": begin, "end_us": end, "job": entry.id, "folder": entry.folder}
            found = entry.job.state()
            rows.append({**about, "state": found.state, "reason": found.reason})
        return rows

    @property
    def _folder(self) -> Path:
        return self.queue.state / "schedules"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # --- intervals are queued ---------------------------------------------------------------------

    def fire(self) -> list[str]:
        """Queue all intervals that are due; return a line for each, and for what is skipped."""
        if not self._folder.exists():
            return []
        self.reached("schedule-step-1")
        with self._locked():
            return [line for schedule in self.all() for line in self._fire(schedule)]

    def _fire(self, before: Schedule) -> list[str]:
        """Queue what has ended since the cursor; a clock that was set back makes nothing due."""
        found, problem, about = before, "", f"schedule {before.name}"
        lines = list[str]()
        try:
            due = list(found.cron.intervals(found.cursor_us, self.queue.now()))
            if skipped := due[:-CATCH_UP]:
                text = f"{len(skipped):,} intervals {found.span((skipped[0][0], skipped[-1][1]))}"
                found = replace(found, cursor_us=skipped[-1][1], skipped=text)
                lines.append(f"{about} skips {text}: more than {CATCH_UP} were due")
            for interval in due[-CATCH_UP:]:
                found, entry = self._queue(found, interval)
                self.reached("schedule-step-2")
                found = replace(found, cursor_us=interval[1])
                if entry is not None:
                    lines.append(f"{about} queues {found.span(interval)} as {entry.id}")
        except UsageError as exc:  # too many wait: later
            problem = str(exc)
            if problem != before.problem:
                lines.append(f"{about} waits: {problem}")
        found = replace(found, problem=problem)
        if found != before:
            self.write(found)
            self.reached("schedule-step-3")
        return lines

    def backfill(self, name: str, begin_us: int, end_us: int) -> tuple[list[Entry], int]:
        """Queue the intervals within a time that have ended and have not run; return their jobs,
        and how many have run already."""
        with self._locked():
            found, now = self.find(name), self.queue.now()
            first = next(found.cron.after(begin_us - 1))
            queued = list[Entry | None]()
            try:
                for interval in found.cron.intervals(first, min(end_us, now)):
                    found, entry = self._queue(found, interval, f"{name}/{now}")
                    queued.append(entry)
            finally:
                self.write(found)
        done = [entry for entry in queued if entry is not None]
        return done, len(queued) - len(done)

    def _queue(
        self, found: Schedule, interval: Interval, backfill: str | None = None
    ) -> tuple[Schedule, Entry | None]:
        """Queue the job of an interval, unless that has run, runs or waits; return the schedule
        with the interval noted, and what is new in the queue."""
        entry = replace(found.entry(interval, self.queue.state), backfill=backfill)
        noted = dict(sorted({**found.intervals, interval[0]: interval[1]}.items())[-NOTED:])
        known = interval[0] in found.intervals and entry.job.state().state not in NOT_RUN
        found = replace(found, intervals=noted)
        if known or entry.job.submitted or self.queue.entry(entry.id):
            return found, None
        self.queue.add(entry)
        return found, entry
