"""What the queue has of a job."""

import json
import sqlite3
from dataclasses import dataclass

from streams.contract.documents import Document
from streams.runtime.processes import Process


class RunOptions(Document):
    """How a queued job runs; `words` are of a scheduled job, which is not submitted before its
    first attempt: the words behind `tidewheel score`, read in `cwd`."""

    timeout_s: float | None = None
    processes: int | None = None
    max_errors: str | None = None
    report: str | None = None
    kafka: str | None = None
    words: list[str] | None = None
    cwd: str = ""


@dataclass(frozen=True)
class NewEntry:
    """A job to be added. Of all jobs that are `part_of` something, `max_active` run at once."""

    id: str
    folder: str
    options: RunOptions
    priority: int = 0
    expires_us: int | None = None
    part_of: str | None = None
    max_active: int | None = None


@dataclass(frozen=True)
class Entry:
    """A job in the queue. It waits, or `runner` is the one that has claimed it.

    fence      the number of the last claim; a process with another one may not write
    claimed_by the runner's process; `process`: the job's, as soon as it holds the job's folder
    previous   processes of earlier claims, which must be gone before another one works
    lease_s    of the monotonic clock of the boot: until then the claim is not taken away
    """

    seq: int
    id: str
    folder: str
    options: RunOptions
    priority: int
    submitted_us: int
    expires_us: int | None
    attempts: int
    failures: int
    next_us: int
    reason: str
    fence: int
    runner: str | None
    claimed_by: Process | None
    process: Process | None
    previous: tuple[Process, ...]
    lease_s: float | None

    @property
    def waits(self) -> bool:
        return self.runner is None


def entry_of(row: sqlite3.Row) -> Entry:
    found = {name: row[name] for name in Entry.__dataclass_fields__}
    found["options"] = RunOptions.decode(row["options"].encode())
    for name in ("claimed_by", "process"):
        found[name] = None if row[name] is None else Process.decode(row[name])
    found["previous"] = tuple(Process(**one) for one in json.loads(row["previous"]))
    return Entry(**found)
