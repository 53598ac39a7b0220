"""The folder of a job: docs/architecture/batch.md, The job's folder; and which jobs a state folder
knows."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from streams.batch.output_files import part_path
from streams.batch.progress import JobState, Plan, ShardRecord, State
from streams.batch.specification import Specification
from streams.contract.artifact import Artifact, digest_of, files_of
from streams.contract.documents import Document, decoded, encoded
from streams.contract.errors import ArtifactError, TidewheelError, UsageError, line_of
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic

T = TypeVar("T")

WAIT_S, PAUSE_S = 0.5, 0.025  # for the lock


class Held(UsageError):
    """Another process works on the job."""


def now_us() -> int:
    return time.time_ns() // 1000


class Models(NamedTuple):
    """A job's artifact and its bytes; `weights` are those of a personal model of it."""

    artifact: Artifact
    data: bytes
    weights: bytes | None = None

    @property
    def weights_sum(self) -> str | None:
        """The SHA-256 of the weights."""
        return None if self.weights is None else hashlib.sha256(self.weights).hexdigest()


@dataclass(frozen=True)
class JobFolder:
    """What a job has done, on disk; every file is replaced as a whole."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.twa"

    @property
    def weights(self) -> Path:
        """Those of a personal model."""
        return self.folder / "weights.safetensors"

    @property
    def report(self) -> Path:
        """A page of the job, written at the end of each run."""
        return self.folder / "report.md"

    @property
    def submitted(self) -> bool:
        """Whether there is a job."""
        return (self.folder / "specification.json").exists()

    def lock(self, wait_s: float = WAIT_S) -> IO[str]:
        """Return the lock, which holds the folder until it is closed; raise Held if another process
        works on the job for all of the wait: one that only looks holds it for a moment. A process
        that inherits its descriptor holds the folder too, until it ends."""
        until = time.monotonic() + wait_s
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("a+")
        except OSError as exc:
            raise self.unwritable(exc) from exc
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                if time.monotonic() >= until:
                    handle.close()
                    raise Held(f"another process works on the job {self.folder}") from None
            time.sleep(PAUSE_S)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; yield the lock's descriptor."""
        with self.lock() as handle:
            yield handle.fileno()

    def unwritable(self, exc: OSError) -> UsageError:
        """Return what is said where the folder cannot be written."""
        return UsageError(f"the job's folder {self.folder} cannot be written: {exc}")

    @property
    def running(self) -> bool:
        """Whether a process works on the job."""
        try:
            with (self.folder / "lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    # --- documents ------------------------------------------------------------------------------

    def specification(self) -> Specification:
        """Return what was asked for; raise UsageError if there is no job."""
        if not self.submitted:
            raise UsageError(f"{self.folder} is no job: name the folder that `score` printed")
        found = self._read("specification.json", Specification)
        assert found is not None
        return found

    def plan(self) -> Plan | None:
        return self._read("plan.json", Plan)

    def state(self) -> JobState:
        return self._read("state.json", JobState) or JobState(state="Submitted", updated_us=0)

    def record(self, shard: int) -> ShardRecord | None:
        return self._read(f"shards/{shard:05}.json", ShardRecord)

    def submit(
        self, specification: Specification, models: Models, reached: Failpoint = unarmed
    ) -> None:
        """Write what was asked for, step 1 of a job; raise UsageError, and there is no job, if that
        fails. The caller holds the folder."""
        try:
            write_atomic(self.model, models.data)
            if models.weights is not None:
                write_atomic(self.weights, models.weights)
            self._write("specification.json", specification)
        except OSError as exc:
            raise self.unwritable(exc) from exc
        reached("score-step-1")

    def models(self, specification: Specification) -> Models:
        """Return the job's model; it was verified when the job was submitted."""
        try:
            data = self.model.read_bytes()
            weights = None if specification.weights is None else self.weights.read_bytes()
            manifest, files = files_of(data)
        except OSError as exc:
            raise UsageError(f"the job's model {exc.filename} is gone: {exc}") from exc
        except ArtifactError as exc:
            raise UsageError(f"the job's model {self.model}: {exc}") from exc
        found = Models(Artifact(manifest, digest_of(data), files, len(data)), data, weights)
        for path, there, wanted in (
            (self.model, found.artifact.digest, specification.digest),
            (self.weights, found.weights_sum, specification.weights),
        ):
            if there != wanted:
                raise UsageError(f"the job's model {path} is not that of the specification")
        return found

    def write_plan(self, plan: Plan) -> None:
        self._write("plan.json", plan)

    def write_state(self, state: State, reason: str = "", *, passing: bool = False) -> None:
        """Write the job's state; its times go on where the clock is set back."""
        now = max(now_us(), self.state().updated_us)
        found = JobState(state=state, reason=reason, updated_us=now, passing=passing)
        self._write("state.json", found)
        self.note(f"{state}: {reason}" if reason else state)

    def write_record(self, shard: int, record: ShardRecord) -> None:
        self._write(f"shards/{shard:05}.json", record)

    def done(self, plan: Plan, specification: Specification) -> Iterator[tuple[int, ShardRecord]]:
        """Yield the records of the shards that are completed, and whose output file is as
        written."""
        for shard in range(len(plan.shards)):
            record = self.record(shard)
            if record is None or record.state != "Completed":
                continue
            part = part_path(self.folder, specification, plan, shard)
            if not specification.in_files or record.bytes == size_of(part):
                yield shard, record

    def missing(self, plan: Plan, specification: Specification) -> list[int]:
        """Return the shards that are still to be done."""
        done = {shard for shard, _ in self.done(plan, specification)}
        return [shard for shard in range(len(plan.shards)) if shard not in done]

    def mark_failed(self) -> int:
        """Mark the shards that have rows with errors as not done; return how many. The caller holds
        the folder."""
        self.specification()
        plan, marked = self.plan(), 0
        for number in range(len(plan.shards) if plan is not None else 0):
            record = self.record(number)
            if record is None or record.state == "InProgress" or not record.counts.failed:
                continue
            self.write_record(number, record.begun_again(record.attempts))
            marked += 1
        if marked:
            self.write_state("InProgress", f"{marked} shards with errors are scored again")
        return marked

    def note(self, text: str) -> None:
        """Add a line to the job's log."""
        line = json.dumps({"time_us": now_us(), "text": text}, ensure_ascii=False).encode()
        with (self.folder / "log.jsonl").open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            cut_off = file.read(1) not in (b"", b"\n")  # by a crash, or a full disk
            file.write(b"\n" * cut_off + line + b"\n")

    def log(self) -> list[dict[str, Any]]:
        """Return the job's log; a line that was cut off by a crash is left out."""
        found = []
        with suppress(FileNotFoundError):
            for line in (self.folder / "log.jsonl").read_bytes().splitlines():
                with suppress(ValueError):
                    found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict) and "time_us" in line]

    @property
    def stop_requested(self) -> bool:
        return (self.folder / "stop").exists()

    def request_stop(self, wanted: bool) -> None:
        """Ask the process that works on the job to end after its shards, or take that back."""
        path = self.folder / "stop"
        if wanted:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def sweep(self, specification: Specification) -> None:
        """Remove what a killed process left half-written."""
        folders = [self.folder, *(self.folder / name for name in ("shards", "staged", "carry"))]
        if specification.in_files:
            folders.append(Path(specification.output))
        for folder in folders:
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _read(self, name: str, kind: type[T]) -> T | None:
        return read_document(self.folder / name, kind, "start another job")

    def _write(self, name: str, document: Document) -> None:
        write_atomic(self.folder / name, encoded(document, indent=2) + b"\n")


def read_document(path: Path, kind: type[T], advice: str) -> T | None:
    """Return a document, None if it is gone; raise TidewheelError with an advice for another."""
    try:
        return decoded(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise TidewheelError(f"{path} cannot be read: {line_of(exc)}: {advice}") from exc


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@dataclass(frozen=True)
class JobIndex:
    """The jobs that were submitted with one state folder: `<state>/jobs/<id>` is a link to the
    job's folder."""

    state: Path

    def add(self, identity: str, job: JobFolder) -> None:
        link = self.state / "jobs" / identity
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(job.folder)

    def jobs(self) -> Iterator[JobFolder]:
        """Yield the jobs whose folders are there, damaged ones too, the newest first; forget those
        whose folders are gone, or are another, newer job now."""
        seen = set[Path]()
        for link in sorted((self.state / "jobs").glob("*"), key=_made_ns, reverse=True):
            job = JobFolder(link.resolve())
            if not link.exists() or job.folder in seen:
                with suppress(OSError):
                    link.unlink()
            elif job.submitted:
                yield job
            seen.add(job.folder)

    def find(self, name: str) -> JobFolder:
        """Return the job of a folder, or of an id; raise UsageError if its folder is gone."""
        job, link = JobFolder(Path(name).absolute()), self.state / "jobs" / Path(name).name
        if job.submitted or not link.is_symlink():
            return job
        if not link.exists():
            raise UsageError(f"the folder of job {name} is gone")
        return JobFolder(link.resolve())


def _made_ns(link: Path) -> int:
    return link.lstat().st_mtime_ns
