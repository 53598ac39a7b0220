"""Jobs of `tidewheel score`, from their folders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compose.reports.queue_places import Place, places_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.job_index import JobIndex
from streams.batch.jobs.manifest import manifest_of
from streams.batch.records.documents import OVER, Manifest, Plan
from streams.contract.errors import TidewheelError
from streams.drift.reference import Reference


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
    found = found.model_copy(update={"ended_us": status.updated_us})
    place = (places or {}).get(specification.id)
    return JobReport(specification.id, found, job.running, place)


def read_jobs(state: Path, places: Iterable[Path] = (), most: int | None = None) -> FoundJobs:
    """Return the jobs that a state folder knows, and those in or directly below the places, the
    newest first and at most so many; and a line for each one that cannot be read."""
    folders = {job.folder for job in JobIndex(state).jobs()} | set(_folders(places))
    found, wrong, queued = [], [], dict[str, Place]()
    try:
        queued = places_of(state)
    except (TidewheelError, OSError) as exc:
        wrong.append(str(exc))
    for folder in sorted(folders):
        try:
            found.append(report_of(JobFolder(folder), places=queued))
        except (TidewheelError, OSError) as exc:
            wrong.append(str(exc))
    found.sort(key=lambda report: -report.manifest.started_us)
    return found[:most], wrong


def _folders(places: Iterable[Path]) -> list[Path]:
    return [
        mark.parent
        for place in places
        for pattern in ("specification.json", "*/specification.json")
        for mark in place.absolute().glob(pattern)
    ]
