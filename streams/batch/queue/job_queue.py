"""The queue of one state folder, `<state>/queue.sqlite`, and its runner.

A row is a job that waits or runs. It runs while its folder is locked (flock): the runner holds the
lock together with the processes that work on the job, and the kernel gives it to another one only
when all of them are gone. So nothing has to be taken away from a dead process.

A runner takes jobs, and starts a process for each attempt. The numbered steps:

1. the job's folder is locked, and an attempt is counted
2. the process of the attempt submits the job if that has not been done: a scheduled one
3. the job ends in one of its states
4. it leaves the queue, or is Scheduled and waits for another attempt

A crash frees the lock: the next runner takes the job again, and where it has ended already it only
does step 4.
"""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from streams.batch.jobs.job_folder import Held, JobFolder, now_us
from streams.batch.records.progress import OVER, JobState
from streams.batch.records.specification import Settings
from streams.contract.errors import Retryable, TidewheelError, UsageError
from streams.runtime.failpoints import Failpoint, unarmed

NAME = "queue.sqlite"
WAIT_S = 5.0  # for another writer
MAX_PAUSE_US = 900_000_000  # of an attempt; a longer one comes of a clock that was set back
POLL_S = 0.2
DIED = "its process died"
TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, folder TEXT NOT NULL,
    settings TEXT NOT NULL, submitted_us INTEGER NOT NULL, expires_us INTEGER, part_of TEXT,
    max_active INTEGER, attempts INTEGER NOT NULL, failures INTEGER NOT NULL,
    next_us INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS schedules (
    name TEXT PRIMARY KEY, cron TEXT NOT NULL, timezone TEXT NOT NULL, settings TEXT NOT NULL,
    created_us INTEGER NOT NULL, cursor_us INTEGER NOT NULL, max_catch_up INTEGER NOT NULL,
    problem TEXT NOT NULL, skipped TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS intervals (
    schedule TEXT NOT NULL, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL,
    job TEXT NOT NULL, folder TEXT NOT NULL, PRIMARY KEY (schedule, start_us)) STRICT;
"""


@dataclass(frozen=True)
class Entry:
    """A job in the queue. Of all jobs that are `part_of` something, `max_active` run at once."""

    id: str
    folder: str
    settings: Settings
    submitted_us: int = 0
    expires_us: int | None = None
    part_of: str | None = None
    max_active: int | None = None
    attempts: int = 0  # that have begun
    failures: int = 0  # of them
    next_us: int = 0  # before that no attempt is made
    reason: str = ""

    @property
    def job(self) -> JobFolder:
        return JobFolder(Path(self.folder))


COLUMNS = tuple(Entry.__dataclass_fields__)


@dataclass(frozen=True)
class JobQueue:
    """Jobs that wait and jobs that run. now: the wall clock, in microseconds."""

    state: Path
    now: Callable[[], int] = now_us
    max_waiting: int = 1000

    def entries(self) -> list[Entry]:
        """Return the jobs, the oldest first."""
        rows = rows_of(self.state, f"SELECT {', '.join(COLUMNS)} FROM jobs ORDER BY seq")
        parsed = ({**row, "settings": Settings.decode(row["settings"].encode())} for row in rows)
        return [Entry(**row) for row in parsed]

    def entry(self, identity: str) -> Entry | None:
        return next((entry for entry in self.entries() if entry.id == identity), None)

    def add(self, entry: Entry) -> None:
        with writing(self.state) as connection:
            self.insert(connection, entry)

    def insert(self, connection: sqlite3.Connection, entry: Entry) -> None:
        """Add a job in a transaction of the caller's; raise UsageError if it is there, or if too
        many wait."""
        (count,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        if count >= self.max_waiting:
            raise UsageError(
                f"{count:,} jobs wait in {self.state}, {self.max_waiting:,} may: start another "
                "`tidewheel jobs run`"
            )
        if connection.execute("SELECT 1 FROM jobs WHERE id = ?", (entry.id,)).fetchone():
            raise UsageError(f"the job {entry.id} is queued already")
        found = {**vars(entry), "settings": entry.settings.model_dump_json()}
        found["submitted_us"] = self.now()
        places = ", ".join(f":{name}" for name in COLUMNS)
        connection.execute(f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({places})", found)

    def take(self) -> tuple[Entry, IO[str]] | None:
        """Take the oldest job that is due and that no process works on, and count an attempt;
        return it with the lock of its folder, which the caller closes. None if there is none."""
        entries = self.entries()
        for entry in entries:
            same = [one for one in entries if one.part_of == entry.part_of]
            most = entry.max_active
            if not self._due(entry) or (most and sum(one.job.running for one in same) >= most):
                continue
            with suppress(Held):
                lock = entry.job.lock(0)
                now = self.entry(entry.id)  # another one may have ended it before the lock was ours
                if now is not None and self._due(now):
                    self._change(entry.id, "attempts = attempts + 1")
                    return replace(now, attempts=now.attempts + 1), lock
                lock.close()
        return None

    def _due(self, entry: Entry) -> bool:
        wait_us = entry.next_us - self.now()
        return (wait_us <= 0 or wait_us > MAX_PAUSE_US) and not self._late(entry)

    def _late(self, entry: Entry) -> bool:
        """Return whether a job has waited for its first attempt until it expired."""
        expires_us = entry.expires_us
        return entry.attempts == 0 and expires_us is not None and expires_us <= self.now()

    def expire(self) -> list[Entry]:
        """End the jobs that have waited too long; return them."""
        done = []
        for entry in filter(self._late, self.entries()):
            with suppress(Held), entry.job.locked():
                now = self.entry(entry.id)
                if now is None or not self._late(now):
                    continue
                entry.job.write_state("Expired", "it has waited longer than --expires-after")
                self.finish(entry.id)
                done.append(entry)
        return done

    def again(self, entry: Entry, pause_s: float, reason: str, *, failed: bool) -> None:
        """Let a job wait for another attempt; the caller holds its folder."""
        values = self.now() + int(pause_s * 1e6), reason, int(failed)
        self._change(entry.id, "next_us = ?, reason = ?, failures = failures + ?", *values)

    def finish(self, identity: str) -> None:
        """Remove a job that is over; the caller holds its folder."""
        with writing(self.state) as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def _change(self, identity: str, what: str, *values: object) -> None:
        with writing(self.state) as connection:
            connection.execute(f"UPDATE jobs SET {what} WHERE id = ?", (*values, identity))


# --- the database ---------------------------------------------------------------------------------


def rows_of(state: Path, query: str, *values: object) -> list[dict[str, Any]]:
    """Return the rows of a query; none where nothing was ever queued."""
    if not (state / NAME).exists():
        return []
    with _opened(state / NAME) as connection:
        return [dict(row) for row in connection.execute(query, values)]


@contextmanager
def writing(state: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection in a transaction, which an exception takes back."""
    with _opened(state / NAME) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database for one operation, so that nobody is locked out between two."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                connection.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
            yield connection
    except (sqlite3.Error, OSError) as exc:
        kind = Retryable if "locked" in str(exc) else TidewheelError
        raise kind(f"the queue {path} cannot be used: {exc}") from exc


# --- the runner -----------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a runner reports."""

    kind: Literal["begins", "ended", "again", "expired", "schedule", "wait"]
    text: str
    job: str | None = None
    state: str | None = None


@dataclass
class Runner:
    """Runs jobs of one state folder.

    start  starts the process of an attempt (a subprocess.Popen), which inherits the lock
    fire   queues what schedules have due
    wait   waits so many seconds, returns whether to stop; `hurry`: stop at once
    """

    queue: JobQueue
    start: Callable[[Entry, int], Any]
    tell: Callable[[Event], None]
    wait: Callable[[float], bool]
    fire: Callable[[], None] = lambda: None
    hurry: Callable[[], bool] = lambda: False
    max_running: int = 1
    max_attempts: int = 5  # that fail of what may pass
    first_pause_s: float = 30.0  # before the second one, then doubled
    reached: Failpoint = unarmed
    _running: list[tuple[Entry, IO[str], Any]] = field(default_factory=list)

    def run(self, until: Literal["stopped", "empty", "nothing due"]) -> list[JobState]:
        """Run jobs until there is nothing left, or until it is stopped; return how those ended that
        are over."""
        over: list[JobState] = []
        try:
            while True:
                with suppress(Retryable):  # another process writes the queue
                    over += self._settled()
                    self._begin()
                    empty = until == "nothing due" or not self.queue.entries()
                    if until != "stopped" and empty and not self._running:
                        return over
                if self.wait(POLL_S):
                    return over + self._stop()
        finally:
            for _, lock, process in self._running:
                process.kill()
                process.wait()
                lock.close()

    def _begin(self) -> None:
        """Do what is due."""
        for entry in self.queue.expire():
            self.tell(Event("expired", "Expired", entry.id, "Expired"))
        self.fire()
        while len(self._running) < self.max_running and (taken := self.queue.take()):
            entry, lock = taken
            try:
                self.reached("attempt-step-1")
                process = self.start(entry, lock.fileno())
            except BaseException:
                lock.close()
                raise
            self._running.append((entry, lock, process))
            self.tell(Event("begins", f"attempt {entry.attempts}: {entry.folder}", entry.id))

    def _settled(self) -> list[JobState]:
        """Do step 4 of the jobs whose processes have ended; return those that are over."""
        over = []
        for one in [one for one in self._running if one[2].poll() is not None]:
            over.append(self._settle(one[0]))
            self.reached("attempt-step-4")
            self._running.remove(one)
            one[1].close()
        return [found for found in over if found is not None]

    def _settle(self, entry: Entry) -> JobState | None:
        """Return the state of a job that is over; None: it waits again."""
        job = entry.job
        found = job.state()
        if found.state not in OVER:
            found = JobState(state="Failed", reason=DIED, passing=True, updated_us=0)
        stopped = found.state == "Stopped"  # by `jobs stop`, or with its runner
        passing = found.state == "Failed" and found.passing
        failures, why = entry.failures + passing, f": {found.reason}" if found.reason else ""
        if (stopped and not job.stop_requested) or (passing and failures < self.max_attempts):
            pause_s = min(self.first_pause_s * 2.0 ** min(failures - 1, 64), MAX_PAUSE_US / 1e6)
            pause_s *= random.uniform(0.75, 1.0) if passing else 0.0  # no two jobs have the same
            job.write_state("Scheduled", found.reason)
            self.queue.again(entry, pause_s, found.reason, failed=passing)
            text = f"{found.state}, next try in {pause_s:.0f} s{why}"
            self.tell(Event("again", text, entry.id, found.state))
            return None
        if found.reason == DIED:
            job.write_state("Failed", DIED)
        self.queue.finish(entry.id)
        self.tell(Event("ended", f"{found.state}{why}", entry.id, found.state))
        return found

    def _stop(self) -> list[JobState]:
        """Let the jobs end after the shards that they score now; they wait again."""
        over: list[JobState] = []
        for entry, _, process in self._running:
            process.terminate()
            self.tell(Event("wait", "the job ends after its current shards", entry.id))
        while self._running and not self.hurry():
            with suppress(Retryable):
                over += self._settled()
            self.wait(POLL_S)
        return over
