"""<state>/queue.sqlite: what waits, what runs, and the schedules.

A connection is open for one operation only, so a process that is stopped between two of them locks
nobody out. A write is one transaction. Readers wait for nobody (write-ahead log): a process that is
stopped within a write is found by its lease.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from streams.contract.errors import Retryable, TidewheelError, UsageError

NAME, FORMAT = "queue.sqlite", 1
WAIT_S = 5.0  # for another writer
TABLES = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    folder TEXT NOT NULL,
    options TEXT NOT NULL,
    priority INTEGER NOT NULL,
    submitted_us INTEGER NOT NULL,
    expires_us INTEGER,
    part_of TEXT,
    max_active INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    next_us INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    fence INTEGER NOT NULL DEFAULT 0,
    runner TEXT,
    claimed_by TEXT,
    process TEXT,
    previous TEXT NOT NULL DEFAULT '[]',
    lease_s REAL
) STRICT;
CREATE TABLE fences (last INTEGER NOT NULL) STRICT;
INSERT INTO fences VALUES (0);
CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    cron TEXT NOT NULL,
    timezone TEXT NOT NULL,
    options TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    cursor_us INTEGER NOT NULL,
    max_catch_up INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    expires_s REAL,
    problem TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE intervals (
    schedule TEXT NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    job TEXT,
    folder TEXT,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    updated_us INTEGER NOT NULL,
    PRIMARY KEY (schedule, start_us)
) STRICT;
CREATE INDEX intervals_by_job ON intervals (job);
"""


@contextmanager
def reading(state: Path) -> Iterator[sqlite3.Connection | None]:
    """Yield a connection that reads, None where nothing was ever queued."""
    path = state / NAME
    if not path.exists():
        yield None
        return
    with _translated(path), closing(_connect(path)) as connection:
        yield connection if _format(connection, path) else None


@contextmanager
def writing(state: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection in a transaction, which an exception takes back."""
    path = state / NAME
    with _translated(path):
        state.mkdir(parents=True, exist_ok=True)
        with closing(_connect(path)) as connection:
            if not _format(connection, path):
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if not _format(connection, path):
                for statement in TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            yield connection
            connection.execute("COMMIT")


@contextmanager
def kept_open(state: Path) -> Iterator[None]:
    """Hold an idle connection: the last one that closes locks readers out while it removes the log,
    and a process that is stopped there could not be found. So a runner's is the last."""
    with reading(state) as found:
        missing = found is None
    if missing:
        with writing(state):
            pass
    path = state / NAME
    with _translated(path), closing(_connect(path)) as connection:
        connection.execute("SELECT last FROM fences").fetchone()
        yield


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: a transaction begins where we say so
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _format(connection: sqlite3.Connection, path: Path) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > FORMAT:
        raise UsageError(f"{path} has format {found}; this version reads {FORMAT}")
    return int(found)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        kind = Retryable if "locked" in str(exc) else TidewheelError
        raise kind(f"the queue {path} cannot be used: {exc}") from exc
    except (sqlite3.Error, OSError) as exc:
        raise TidewheelError(f"the queue {path} cannot be used: {exc}") from exc
