"""The queue of one state folder. Each method is one transaction.

A claim has a fence: a number that no other claim has. A process that works on a job names its fence
at each change of the row, and changes nothing once the claim was taken away.
"""

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from streams.batch.jobs.job_folder import now_us
from streams.batch.queue.database import reading, writing
from streams.batch.queue.entries import Entry, NewEntry, entry_of
from streams.batch.queue.outcome import MAX_PAUSE_S, Retrying
from streams.contract.errors import UsageError
from streams.runtime.processes import Process, alive, elsewhere, end

ORDER = "priority DESC, seq"
MAX_WAITING = 1000
BUSY_S = 5.0  # before a job that another process works on is looked at again
FREE = """runner IS NULL AND (next_us <= :now OR next_us > :now + :longest)
    AND (expires_us IS NULL OR attempts > 0 OR expires_us > :now)
    AND (part_of IS NULL OR max_active > (SELECT count(*) FROM jobs AS other
         WHERE other.part_of = jobs.part_of AND other.runner IS NOT NULL))"""

# the process of a claim that ends, among those that must be gone before another one works
RETIRE = """previous = CASE WHEN process IS NULL THEN previous
    ELSE json_insert(previous, '$[#]', json(process)) END, process = NULL"""


@dataclass(frozen=True)
class JobQueue:
    """Jobs that wait and jobs that run. now: wall clock, in microseconds; clock: of leases."""

    state: Path
    now: Callable[[], int] = now_us
    clock: Callable[[], float] = time.monotonic

    # --- what is there --------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return the jobs that run, then those that wait, in their order."""
        return self._found("TRUE")

    def entry(self, identity: str) -> Entry | None:
        return next(iter(self._found("id = ?", identity)), None)

    def current(self, identity: str, fence: int) -> Entry | None:
        """Return the entry of a claim that holds."""
        entry = self.entry(identity)
        return entry if entry and entry.fence == fence and not entry.waits else None

    # --- jobs come and go -----------------------------------------------------------------------

    def add(self, entry: NewEntry, max_waiting: int = MAX_WAITING) -> None:
        """Add a job; raise UsageError if it is there, or if too many wait."""
        with writing(self.state) as connection:
            insert(connection, entry, max_waiting, self.now(), self.state)

    def withdraw(self, identity: str, state: str, reason: str = "") -> bool:
        """Remove a job that waits; return whether it did."""
        with writing(self.state) as connection:
            return _removed(connection, "id = ? AND runner IS NULL", (identity,), state, reason)

    def expired(self) -> list[Entry]:
        """Return the jobs that have waited for their first attempt until they expire."""
        return self._found("runner IS NULL AND attempts = 0 AND expires_us <= ?", self.now())

    # --- claims ---------------------------------------------------------------------------------

    def claim(self, runner: str, process: Process, lease_s: float) -> Entry | None:
        """Claim the next job that is due; None if there is none."""
        given = {"now": self.now(), "longest": int(MAX_PAUSE_S * 1e6)}
        free = f"SELECT id FROM jobs WHERE {FREE} ORDER BY {ORDER} LIMIT 1"
        with reading(self.state) as found:
            if found is None or found.execute(free, given).fetchone() is None:
                return None
        with writing(self.state) as connection:
            row = connection.execute(free, given).fetchone()
            if row is None:
                return None
            lease, fence = self.clock() + lease_s, _next_fence(connection)
            row = connection.execute(
                f"""UPDATE jobs SET runner = ?, claimed_by = ?, lease_s = ?, fence = ?,
                   attempts = attempts + 1, {RETIRE}
                   WHERE id = ? RETURNING *""",
                (runner, process.encode(), lease, fence, row["id"]),
            ).fetchone()
            return entry_of(row)

    def register(self, entry: Entry, process: Process, lease_s: float) -> bool:
        """Note the process that works on a claimed job, before it holds the job's folder; False if
        the claim is gone."""
        before = [asdict(one) for one in entry.previous if alive(one) is not False]
        return self._change(
            entry.id, entry.fence, "process = ?, previous = ?, lease_s = ?", process.encode(),
            json.dumps(before), self.clock() + lease_s,
        )  # fmt: skip

    def hold(self, identity: str, fence: int, lease_s: float) -> bool:
        """Note that a claim's process holds the folder, so that earlier ones are gone; False if the
        claim is gone."""
        return self._change(identity, fence, "previous = '[]', lease_s = ?", self.clock() + lease_s)

    def renew(self, identity: str, fence: int, lease_s: float, *, begun: bool = True) -> bool:
        """Prolong a claim: by the job's process once it has begun, by the runner before that."""
        which = "" if begun else " AND process IS NULL"
        return self._change(identity, fence, "lease_s = ?", self.clock() + lease_s, which=which)

    def finish(self, identity: str, fence: int, state: str, reason: str) -> bool:
        """Remove a job that is over; False if the claim is gone."""
        which = "id = ? AND fence = ? AND runner IS NOT NULL"
        with writing(self.state) as connection:
            return _removed(connection, which, (identity, fence), state, reason)

    def again(
        self, identity: str, fence: int, pause_s: float, reason: str, *, failed: bool
    ) -> bool:
        """Let a claimed job wait again; False if the claim is gone."""
        return self._change(
            identity, fence,
            f"""runner = NULL, claimed_by = NULL, {RETIRE}, next_us = ?, reason = ?,
                failures = failures + ?""",
            self.now() + int(pause_s * 1e6), reason, int(failed),
        )  # fmt: skip

    def take_back(self, retrying: Retrying) -> list[tuple[Entry, str]]:
        """Take claims away whose lease is over, or whose process is gone; return them with what
        has become of each. Where the process died and its runner lives, the job has failed."""
        claimed = self._found("runner IS NOT NULL")
        lost = [(e, why) for e in claimed if (why := lost_by(e, self.clock()))]
        done = []
        for entry, why in lost:
            died = why == DIED
            pause_s = retrying.pause_s(entry.failures + 1) if died else 0.0
            if self._take(entry, pause_s, why, failed=died):
                done.append((entry, why))
        return done

    def end_overdue(self) -> None:
        """Kill the processes of claims whose leases are over: one that is stopped within a write
        keeps all others from it, so that no claim can be taken away."""
        for entry in self.entries():
            late = entry.lease_s is not None and self.clock() > entry.lease_s
            if late and entry.process is not None and not entry.waits:
                end(entry.process)

    def _take(self, entry: Entry, pause_s: float, reason: str, *, failed: bool) -> bool:
        with writing(self.state) as connection:
            row = connection.execute(
                f"""UPDATE jobs SET runner = NULL, claimed_by = NULL, fence = ?,
                   {RETIRE}, next_us = ?,
                   reason = ?, failures = failures + ?
                   WHERE id = ? AND fence = ? AND runner IS NOT NULL AND lease_s = ?
                   RETURNING id""",
                (_next_fence(connection), self.now() + int(pause_s * 1e6), reason, int(failed),
                 entry.id, entry.fence, entry.lease_s),
            ).fetchone()  # fmt: skip
            return row is not None

    def _found(self, which: str, *values: object) -> list[Entry]:
        order = f"runner IS NULL, {ORDER}"
        with reading(self.state) as found:
            if found is None:
                return []
            statement = f"SELECT * FROM jobs WHERE {which} ORDER BY {order}"
            rows = found.execute(statement, values).fetchall()
        return [entry_of(row) for row in rows]

    def _change(
        self, identity: str, fence: int, what: str, *values: object, which: str = ""
    ) -> bool:
        statement = f"UPDATE jobs SET {what} WHERE id = ? AND fence = ? AND runner IS NOT NULL"
        with writing(self.state) as connection:
            done = connection.execute(statement + which, (*values, identity, fence))
            return done.rowcount == 1


DIED = "its process died"
PAUSED = "its process has not renewed its lease"
GONE = "its runner is gone"


def lost_by(entry: Entry, now_s: float) -> str:
    """Return why a claim is lost; "" if it holds, none was made, or another machine made it: its
    lease is by another clock."""
    if entry.claimed_by is None or entry.lease_s is None or elsewhere(entry.claimed_by):
        return ""
    worker = entry.process or entry.claimed_by
    if alive(worker) is False:
        return DIED if entry.process and alive(entry.claimed_by) else GONE
    return PAUSED if now_s > entry.lease_s else ""


def insert(
    connection: sqlite3.Connection, entry: NewEntry, max_waiting: int, now: int, state: Path
) -> None:
    """Add a job in a transaction of the caller's."""
    (waiting,) = connection.execute("SELECT count(*) FROM jobs WHERE runner IS NULL").fetchone()
    if waiting >= max_waiting:
        raise UsageError(
            f"{waiting:,} jobs wait in {state} already, --max-waiting allows {max_waiting:,}: "
            "start another `tidewheel jobs run`, or allow more"
        )
    if connection.execute("SELECT 1 FROM jobs WHERE id = ?", (entry.id,)).fetchone():
        raise UsageError(f"the job {entry.id} is queued already")
    connection.execute(
        """INSERT INTO jobs (id, folder, options, priority, submitted_us, expires_us, part_of,
           max_active) VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (entry.id, entry.folder, entry.options.model_dump_json(), entry.priority, now,
         entry.expires_us, entry.part_of, entry.max_active),
    )  # fmt: skip


def _removed(
    connection: sqlite3.Connection, which: str, values: tuple[object, ...], state: str, reason: str
) -> bool:
    row = connection.execute(f"DELETE FROM jobs WHERE {which} RETURNING id", values).fetchone()
    if row is None:
        return False
    connection.execute(
        "UPDATE intervals SET state = ?, reason = ?, updated_us = ? WHERE job = ?",
        (state, reason, now_us(), row["id"]),
    )
    return True


def _next_fence(connection: sqlite3.Connection) -> int:
    row = connection.execute("UPDATE fences SET last = last + 1 RETURNING last").fetchone()
    return int(row["last"])
