"""Jobs of `tidewheel score`, from their folders, and where they are in the queue."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compose.reports.terminal import moment
from streams.batch.jobs.job_folder import JobFolder, now_us
from streams.batch.jobs.job_index import JobIndex, newest_first
from streams.batch.jobs.manifest import manifest_of
from streams.batch.queue.job_queue import Entry, JobQueue
from streams.batch.records.documents import Plan
from streams.batch.records.progress import OVER, Manifest
from streams.contract.errors import TidewheelError
from streams.drift.reference import Reference


@dataclass(frozen=True)
class Place:
    """A job's place in the queue: `position` counts those that wait, from 1; None: it runs."""

    entry: Entry
    position: int | None


@dataclass(frozen=True)
class JobReport:
    """What a job has done so far; running: a process works on it; place: None outside the queue."""

    id: str
    manifest: Manifest
    running: bool
    place: Place | None = None

    @property
    def abandoned(self) -> bool:
        """Whether it is not over, no process works on it, and no runner will."""
        return not self.running and self.place is None and self.manifest.state not in OVER


FoundJobs = tuple[list[JobReport], list[str]]


def report_of(
    job: JobFolder, reference: Reference | None = None, places: Mapping[str, Place] | None = None
) -> JobReport:
    """Return a job's report, its drift against `reference`; raise UsageError if there is none."""
    specification, status = job.specification(), job.state()
    plan = job.plan() or Plan(files=[], shards=[])
    found = manifest_of(job, specification, plan, status.state, status.reason, reference)
    found = found.model_copy(update={"ended_us": max(status.updated_us, found.started_us)})
    place = (places or {}).get(specification.id)
    return JobReport(specification.id, found, job.running, place)


def read_jobs(state: Path, places: Iterable[Path] = (), most: int | None = None) -> FoundJobs:
    """Return the jobs that a state folder knows, and those in or directly below the places, the
    newest first and at most so many; and a line for each one that cannot be read. Older ones are
    not read."""
    found: list[JobReport] = []
    wrong: list[str] = []
    queued: dict[str, Place] = {}
    try:
        queued = places_of(state)
    except (TidewheelError, OSError) as exc:
        wrong.append(str(exc))
    seen: set[Path] = set()
    newest = heapq.merge(JobIndex(state).jobs(), _jobs_in(places), key=_submitted_ns, reverse=True)
    for _, job in newest:
        if len(seen) == most:
            break
        if job.folder in seen:
            continue
        seen.add(job.folder)
        try:
            found.append(report_of(job, places=queued))
        except (TidewheelError, OSError) as exc:
            wrong.append(str(exc))
    found.sort(key=lambda report: -report.manifest.started_us)
    return found, wrong


def _submitted_ns(found: tuple[int, JobFolder]) -> int:
    return found[0]


def _jobs_in(places: Iterable[Path]) -> Iterator[tuple[int, JobFolder]]:
    """Yield the jobs in or directly below the places, the newest first."""
    marks = [
        mark
        for place in places
        for pattern in ("specification.json", "*/specification.json")
        for mark in place.absolute().glob(pattern)
    ]
    for at_ns, mark in newest_first(marks):
        yield at_ns, JobFolder(mark.parent)


# --- the queue ------------------------------------------------------------------------------------


def places_of(state: Path) -> dict[str, Place]:
    """Return the queued jobs of a state folder by their ids, in the queue's order."""
    found: dict[str, Place] = {}
    position = 0
    for entry in JobQueue(state).entries():
        waits = not entry.job.running
        position += waits
        found[entry.id] = Place(entry, position if waits else None)
    return found


def queue_row(place: Place | None) -> dict[str, Any] | None:
    """Return a job's place in the queue as JSON has it."""
    if place is None:
        return None
    entry = place.entry
    return {
        "position": place.position,
        "attempts": entry.attempts,
        "failures": entry.failures,
        "next_try_us": entry.next_us or None,
        "expires_us": entry.expires_us,
        "reason": entry.reason,
    }


def place_text(row: dict[str, Any] | None) -> str:
    """Return a job's place in the queue for a person."""
    if row is None:
        return ""
    if row["position"] is None:
        return f"  attempt {row['attempts']}"
    parts = [f"position {row['position']}"]
    if row["attempts"]:
        parts.append(f"{row['attempts']} attempts")
    if (row["next_try_us"] or 0) > now_us():
        parts.append(f"next try {moment(row['next_try_us'])}")
    reason = f": {row['reason']}" if row["reason"] else ""
    return "  " + ", ".join(parts) + reason


class JobRow(BaseModel):
    """A job as `tidewheel jobs list --json` prints it; queue: its place there."""

    id: str
    state: str
    reason: str
    task: str
    model: str
    job: str
    output: str
    total: int
    processed: int
    created_us: int
    running: bool
    queue: dict[str, Any] | None


def list_jobs(state: Path, places: Iterable[Path] = ()) -> tuple[list[JobRow], list[str]]:
    """Return all jobs, the oldest first, and scheduled ones that have no specification yet; and a
    line for each one that cannot be read."""
    found, wrong = read_jobs(state, places)
    rows = [_row(report) for report in reversed(found)]
    known = {row.id for row in rows}
    rows += [_scheduled(place) for id, place in places_of(state).items() if id not in known]
    return rows, wrong


def _row(report: JobReport) -> JobRow:
    about = report.manifest.model_dump(include=set(JobRow.model_fields))
    queue = queue_row(report.place)
    created_us = report.manifest.started_us
    return JobRow(
        **{**about, "id": report.id}, created_us=created_us, running=report.running, queue=queue
    )


def _scheduled(place: Place) -> JobRow:
    entry, asked = place.entry, place.entry.settings
    return JobRow(
        id=entry.id, state="Scheduled", reason=entry.reason, task=asked.task, model=asked.model,
        job=entry.folder, output=asked.to, total=0, processed=0, created_us=entry.submitted_us,
        running=False, queue=queue_row(place),
    )  # fmt: skip
