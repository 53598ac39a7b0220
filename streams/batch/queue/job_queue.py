"""The queue of one state folder: `<state>/queue.sqlite`. Each method is one transaction.

A row is a job that waits or runs. It runs while its folder is locked (flock): the runner that takes
a job holds the lock together with the processes that work on it, and the kernel gives it to
another one only when all of them are gone. So nothing has to be taken away from a dead process.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from streams.batch.jobs.job_folder import Held, JobFolder, now_us
from streams.batch.records.specification import Settings
from streams.contract.errors import Retryable, TidewheelError, UsageError

NAME = "queue.sqlite"
WAIT_S = 5.0  # for another writer
MAX_WAITING = 1000
MAX_PAUSE_US = (
    900_000_000  # before another attempt; a longer one comes of a clock that was set back
)
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
    job TEXT NOT NULL, folder TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (schedule, start_us)) STRICT;
"""


@dataclass(frozen=True)
class Entry:
    """A job in the queue. Of all jobs that are `part_of` something, `max_active` run at once.

    next_us   before that no attempt is made
    attempts  that have begun, and failures those of them that failed
    """

    id: str
    folder: str
    settings: Settings
    submitted_us: int = 0
    expires_us: int | None = None
    part_of: str | None = None
    max_active: int | None = None
    attempts: int = 0
    failures: int = 0
    next_us: int = 0
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
    max_waiting: int = MAX_WAITING

    def entries(self, which: str = "TRUE", *values: object) -> list[Entry]:
        """Return the jobs, the oldest first."""
        rows = rows_of(self.state, f"SELECT * FROM jobs WHERE {which} ORDER BY seq", *values)
        return [_entry(row) for row in rows]

    def entry(self, identity: str) -> Entry | None:
        return next(iter(self.entries("id = ?", identity)), None)

    def add(self, entry: Entry) -> None:
        """Add a job; raise UsageError if it is there, or if too many wait."""
        with writing(self.state) as connection:
            self.insert(connection, entry)

    def insert(self, connection: sqlite3.Connection, entry: Entry) -> None:
        """Add a job in a transaction of the caller's."""
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
        for entry in self.entries():
            if not self._due(entry) or self._is_full(entry):
                continue
            try:
                lock = entry.job.lock(0)
            except Held:
                continue
            now = self.entry(entry.id)  # another one may have ended it before the lock was ours
            if now is None or not self._due(now):
                lock.close()
                continue
            self._change(entry.id, "attempts = attempts + 1")
            return replace(now, attempts=now.attempts + 1), lock
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
                if (now := self.entry(entry.id)) is not None and self._late(now):
                    if entry.job.submitted:
                        text = "it has waited longer than --expires-after"
                        entry.job.write_state("Expired", text)
                    self.finish(entry.id, "Expired")
                    done.append(entry)
        return done

    def _is_full(self, entry: Entry) -> bool:
        if entry.part_of is None or entry.max_active is None:
            return False
        same = self.entries("part_of = ?", entry.part_of)
        return sum(one.job.running for one in same) >= entry.max_active

    def again(self, entry: Entry, pause_s: float, reason: str, *, failed: bool) -> None:
        """Let a job wait for another attempt; the caller holds its folder."""
        next_us = self.now() + int(pause_s * 1e6)
        what = "next_us = ?, reason = ?, failures = failures + ?"
        self._change(entry.id, what, next_us, reason, int(failed))

    def finish(self, identity: str, state: str, reason: str = "") -> None:
        """Remove a job that is over; the caller holds its folder."""
        with writing(self.state) as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (identity,))
            connection.execute(
                "UPDATE intervals SET state = ?, reason = ? WHERE job = ?",
                (state, reason, identity),
            )

    def _change(self, identity: str, what: str, *values: object) -> None:
        with writing(self.state) as connection:
            connection.execute(f"UPDATE jobs SET {what} WHERE id = ?", (*values, identity))


def _entry(row: sqlite3.Row) -> Entry:
    found = {name: row[name] for name in COLUMNS}
    found["settings"] = Settings.decode(row["settings"].encode())
    return Entry(**found)


# --- the database ---------------------------------------------------------------------------------


def rows_of(state: Path, query: str, *values: object) -> list[Any]:
    """Return the rows of a query; none where nothing was ever queued."""
    path = state / NAME
    if not path.exists():
        return []
    with _opened(path) as connection:
        return connection.execute(query, values).fetchall()


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
    except sqlite3.OperationalError as exc:
        kind = Retryable if "locked" in str(exc) else TidewheelError
        raise kind(f"the queue {path} cannot be used: {exc}") from exc
    except (sqlite3.Error, OSError) as exc:
        raise TidewheelError(f"the queue {path} cannot be used: {exc}") from exc
