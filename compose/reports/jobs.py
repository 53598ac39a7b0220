"""Jobs of `tidewheel score`, from their folders, and where they are in the queue: what `jobs list
--json` prints, and the page of the console shows."""

from itertools import islice
from pathlib import Path

from compose.reports.terminal import moment
from streams.batch.jobs.job_folder import JobFolder, JobIndex
from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.jobs.manifest import manifest_of
from streams.batch.progress import OVER, Manifest
from streams.contract.documents import Document
from streams.contract.errors import TidewheelError
from streams.fleet.wording import counted


class Place(Document):
    """A job in the queue; `position` counts those that wait, from 1; None: it runs."""

    position: int | None
    attempts: int
    failures: int
    next_try_us: int | None
    expires_us: int | None
    reason: str

    def __str__(self) -> str:
        if self.position is None:
            return f"attempt {self.attempts}"
        tried = f", {counted(self.attempts, 'attempt')}" if self.attempts else ""
        after = f", next try {moment(self.next_try_us)}" if self.next_try_us else ""
        return f"position {self.position}{tried}{after}{self.reason and f': {self.reason}'}"


class JobRow(Document):
    """A job; running: a process works on it; queue: its place there; processed: None where it is
    Completed and files of its output are not there any more."""

    id: str
    state: str
    reason: str
    task: str
    model: str
    job: str
    output: str
    total: int = 0
    processed: int | None = 0
    errors: dict[str, int] = {}
    shards: int = 0
    completed: int = 0
    rows_per_s: float = 0.0
    accuracy: float | None = None
    created_us: int
    running: bool = False
    queue: Place | None

    @property
    def abandoned(self) -> bool:
        """Whether it is not over, no process works on it, and no runner will."""
        return not self.running and self.queue is None and self.state not in OVER


SAME = set(JobRow.__struct_fields__) & set(Manifest.__struct_fields__)


def read_jobs(state: Path, most: int | None = None) -> tuple[list[JobRow], list[str]]:
    """Return the jobs that a state folder knows, the newest first and at most so many, and queued
    ones that have no specification yet; and a line for each one that cannot be read."""
    rows, wrong = list[JobRow](), list[str]()
    queued: dict[str, tuple[Entry, Place]] = {}
    try:
        queued = places_of(state)
    except TidewheelError as exc:
        wrong.append(str(exc))
    for job in islice(JobIndex(state).jobs(), most):
        try:
            rows.append(row_of(job, manifest_of(job, drift=False), queued))
        except (TidewheelError, OSError) as exc:
            wrong.append(str(exc))
    known = {row.id for row in rows}
    rows += [_scheduled(*found) for id, found in queued.items() if id not in known and most is None]
    return sorted(rows, key=lambda row: -row.created_us), wrong


def places_of(state: Path) -> dict[str, tuple[Entry, Place]]:
    """Return the queued jobs of a state folder by their ids, in the queue's order."""
    found: dict[str, tuple[Entry, Place]] = {}
    waiting = 0
    for entry in JobQueue(state).entries():
        waits = not entry.job.running
        waiting += waits
        found[entry.id] = entry, Place(
            position=waiting if waits else None, attempts=entry.attempts, failures=entry.failures,
            next_try_us=entry.next_us or None, expires_us=entry.expires_us, reason=entry.reason,
        )  # fmt: skip
    return found


def row_of(job: JobFolder, found: Manifest, queued: dict[str, tuple[Entry, Place]]) -> JobRow:
    """Return a job whose manifest is `found`."""
    identity = job.specification().id
    about = {name: value for name, value in found.fields().items() if name in SAME}
    if found.state == "Completed" and found.completed < found.shards:
        about["processed"] = None
    return JobRow(
        id=identity, accuracy=found.accuracy, created_us=found.started_us, running=job.running,
        queue=queued[identity][1] if identity in queued else None, **about,
    )  # fmt: skip


def _scheduled(entry: Entry, place: Place) -> JobRow:
    asked = entry.settings
    return JobRow(
        id=entry.id, state="Scheduled", reason=entry.reason, task=asked.task, model=asked.model,
        job=entry.folder, output=asked.to, created_us=entry.submitted_us, queue=place,
    )  # fmt: skip
