"""Jobs of `tidewheel score`, from their folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.manifest import manifest_of
from streams.batch.records.documents import Manifest, Plan
from streams.contract.errors import TidewheelError
from streams.drift.reference import Reference

OVER = ("Completed", "Failed", "Stopped", "PartiallyCompleted")


@dataclass(frozen=True)
class JobReport:
    """What a job has done so far; running: a process works on it."""

    manifest: Manifest
    running: bool

    @property
    def abandoned(self) -> bool:
        """Whether it is not over, and no process works on it."""
        return not self.running and self.manifest.state not in OVER


def read_job(folder: Path) -> JobReport:
    """Return the report of the job in `folder`, without drift; UsageError if there is none."""
    return report_of(JobFolder(folder.absolute()))


def report_of(job: JobFolder, reference: Reference | None = None) -> JobReport:
    """Return a job's report; its drift is against `reference`."""
    specification, status = job.specification(), job.state()
    plan = job.plan() or Plan(files=[], shards=[])
    found = manifest_of(job, specification, plan, status.state, status.reason, reference)
    return JobReport(found.model_copy(update={"ended_us": status.updated_us}), job.running)


def read_jobs(places: Iterable[Path], most: int = 100) -> tuple[list[JobReport], list[str]]:
    """Return the newest jobs in or directly below the places, the newest first, and a line for
    each folder of a job that cannot be read."""
    found, wrong = [], []
    for folder in _folders(places):
        try:
            found.append(read_job(folder))
        except (TidewheelError, OSError) as exc:
            wrong.append(str(exc))
    found.sort(key=lambda report: -report.manifest.started_us)
    return found[:most], wrong


def _folders(places: Iterable[Path]) -> list[Path]:
    marks = {
        mark
        for place in places
        for pattern in ("specification.json", "*/specification.json")
        for mark in place.glob(pattern)
    }
    return sorted(mark.parent for mark in marks)
