"""Which jobs a state folder knows: `<state>/jobs/<id>.json` has the job's folder.

A pointer whose folder is gone is left out, and removed by `prune`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from streams.batch.jobs.job_folder import JobFolder, now_us
from streams.batch.records.progress import OVER
from streams.contract.errors import UsageError
from streams.runtime.disk import write_atomic


@dataclass(frozen=True)
class JobIndex:
    """The jobs that were submitted with one state folder."""

    state: Path

    def add(self, identity: str, job: JobFolder) -> None:
        found = {"folder": str(job.folder)}
        write_atomic(self._folder / f"{identity}.json", json.dumps(found).encode())

    def jobs(self) -> Iterator[tuple[int, JobFolder]]:
        """Yield the jobs whose folders are there, damaged ones too, the newest first, each with the
        time of its submission as files have it, in nanoseconds. Reads no more than is asked for."""
        for at_ns, path in newest_first(self._pointers()):
            if (job := self._job(path)) is not None:
                yield at_ns, job

    def find(self, name: str) -> JobFolder:
        """Return the job of a folder, or of an id; raise UsageError if there is none."""
        job = JobFolder(Path(name).absolute())
        if job.submitted or not (self._folder / f"{Path(name).name}.json").exists():
            return job
        found = self._job(self._folder / f"{Path(name).name}.json")
        if found is None:
            raise UsageError(f"the folder of job {name} is gone")
        return found

    def forget_missing(self) -> None:
        """Remove the pointers whose folders are gone."""
        for path in self._pointers():
            if self._job(path) is None:
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self.state / "jobs"

    def _pointers(self) -> list[Path]:
        return list(self._folder.glob("*.json"))

    def _job(self, path: Path) -> JobFolder | None:
        try:
            job = JobFolder(Path(json.loads(path.read_bytes())["folder"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return job if job.submitted else None


def newest_first(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return files with the times of their last change, without those that are gone."""
    found = []
    for path in paths:
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    return sorted(found, reverse=True)


def is_older(job: JobFolder, days: float) -> bool:
    """Return whether a job is over, and has been for so many days."""
    status = job.state()
    return status.state in OVER and now_us() - status.updated_us > days * 86_400_000_000
