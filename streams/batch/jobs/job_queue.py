"""The queue of one state folder, `<state>/queue/<time>-<id>.json`, and its runner.

A file is a job that waits or runs, and is replaced as a whole by who holds the job's folder. The
job runs while its folder is locked (flock): the runner holds the lock together with the processes
that work on the job, and the kernel gives it to another one only when all of them are gone. So
nothing has to be taken away from a dead process.

A runner takes jobs, and starts a process for each attempt. The numbered steps:

1. the job's folder is locked, and an attempt is counted
2. the process of the attempt submits the job if that has not been done: a scheduled one
3. the job ends in one of its states
4. it leaves the queue, or is Scheduled and waits for another attempt

A crash frees the lock: the next runner takes the job again, and where it has ended already it only
does step 4.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, NamedTuple

from streams.batch.jobs.job_folder import Held, JobFolder, JobIndex, now_us, read_document
from streams.batch.progress import OVER, JobState
from streams.batch.specification import Settings
from streams.contract.documents import encoded
from streams.contract.errors import TidewheelError, UsageError
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic

MAX_PAUSE_US = 900_000_000  # of an attempt; a longer one comes of a clock that was set back
POLL_S = 0.2
DIED = "its process died"
LOST = "put the file back, or remove it"
BACKFILLED = 2


@dataclass(frozen=True)
class Entry:
    """A job in the queue. Of all jobs of one `backfill` BACKFILLED run at once, and they do not
    expire."""

    id: str
    folder: str
    settings: Settings
    submitted_us: int = 0
    backfill: str | None = None
    attempts: int = 0  # that have begun
    failures: int = 0  # of them
    next_us: int = 0  # before that no attempt is made
    reason: str = ""

    @property
    def job(self) -> JobFolder:
        return JobFolder(Path(self.folder))

    @property
    def expires_us(self) -> int | None:
        """When it ends if no attempt has begun."""
        after = self.settings.expires_after
        return None if after is None or self.backfill else self.submitted_us + int(after * 1e6)


@dataclass(frozen=True)
class JobQueue:
    """Jobs that wait and jobs that run. now: the wall clock, in microseconds."""

    state: Path
    now: Callable[[], int] = now_us
    max_waiting: int = 1000

    def open(self) -> None:
        """Make the state folder; raise UsageError if it cannot be written, where no job can come
        from or run."""
        folder = self.state / "queue"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as exc:
            raise UsageError(
                f"the state folder {self.state} cannot be written: {exc}: name another with --state"
            ) from exc

    def entries(self, which: str = "*") -> list[Entry]:
        """Return the jobs, the oldest first."""
        found = (read_document(path, Entry, LOST) for path in sorted(self._paths(which)))
        return [entry for entry in found if entry is not None]

    def entry(self, identity: str) -> Entry | None:
        return next(iter(self.entries(identity)), None)

    def add(self, entry: Entry) -> None:
        """Add a job, which is Scheduled and known from now on; raise UsageError if it is in the
        queue, if too many wait, or if its folder cannot be written. The caller holds the folder, or
        is the only one to know it."""
        paths = sorted(self._paths("*"))
        if len(paths) >= self.max_waiting:
            raise UsageError(
                f"{len(paths):,} jobs wait in {self.state}, {self.max_waiting:,} may: start "
                "another `tidewheel jobs run`"
            )
        if self.entry(entry.id):
            raise UsageError(f"the job {entry.id} is queued already")
        try:
            entry.job.write_state("Scheduled")
            JobIndex(self.state).add(entry.id, entry.job)
        except OSError as exc:
            raise entry.job.unwritable(exc) from exc
        last_us = int(paths[-1].name.partition("-")[0]) if paths else 0
        self._write(replace(entry, submitted_us=max(self.now(), last_us + 1)))

    def take(self) -> tuple[Entry, IO[str]] | None:
        """Take the oldest job that is due and that no process works on, and count an attempt;
        return it with the lock of its folder, which the caller closes. None if there is none."""
        entries = self.entries()
        for entry in entries:
            if not self._due(entry):
                continue
            if entry.backfill:
                same = (one for one in entries if one.backfill == entry.backfill)
                if sum(one.job.running for one in same) >= BACKFILLED:
                    continue
            with suppress(Held):
                lock = entry.job.lock(0)
                now = self.entry(entry.id)  # another one may have ended it before the lock was ours
                if now is not None and self._due(now):
                    return self._write(replace(now, attempts=now.attempts + 1)), lock
                lock.close()
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
                now = self.entry(entry.id)
                if now is None or not self._late(now):
                    continue
                entry.job.write_state("Expired", "it has waited longer than --expires-after")
                self.finish(entry.id)
                done.append(entry)
        return done

    def again(self, entry: Entry, pause_s: float, reason: str, *, failed: bool) -> None:
        """Let a job wait for another attempt; the caller holds its folder."""
        entry.job.write_state("Scheduled", reason)
        next_us, failures = self.now() + int(pause_s * 1e6), entry.failures + failed
        self._write(replace(entry, next_us=next_us, failures=failures, reason=reason))

    def finish(self, identity: str) -> None:
        """Remove a job that is over; the caller holds its folder."""
        for path in self._paths(identity):
            path.unlink(missing_ok=True)

    def _paths(self, identity: str) -> Iterator[Path]:
        return (self.state / "queue").glob(f"*-{identity}.json")

    def _write(self, entry: Entry) -> Entry:
        name = f"{entry.submitted_us:016}-{entry.id}.json"
        write_document(self.state / "queue" / name, entry)
        return entry


def write_document(path: Path, document: Any) -> None:
    try:
        write_atomic(path, encoded(document, indent=2))
    except OSError as exc:
        raise TidewheelError(f"{path} of the queue cannot be written: {exc}") from exc


# --- the runner -----------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a runner reports."""

    kind: Literal["begins", "ended", "again", "expired", "schedule", "wait"]
    text: str
    job: str | None = None
    state: str | None = None


@dataclass
class Runner:
    """Runs jobs of one state folder.

    start  starts the process of an attempt (a subprocess.Popen), which inherits the lock
    fire   queues what schedules have due
    wait   waits so many seconds, returns whether to stop; `hurry`: stop at once
    """

    queue: JobQueue
    start: Callable[[Entry, int], Any]
    tell: Callable[[Event], None]
    wait: Callable[[float], bool]
    fire: Callable[[], None] = lambda: None
    hurry: Callable[[], bool] = lambda: False
    max_running: int = 1
    max_attempts: int = 5  # that fail of what may pass
    first_pause_s: float = 30.0  # before the second one, then doubled
    reached: Failpoint = unarmed
    _running: list[tuple[Entry, IO[str], Any]] = field(default_factory=list)

    def run(self, *, until_empty: bool) -> list[JobState]:
        """Run jobs until it is stopped, or there is nothing left; return how those ended that are
        over."""
        over: list[JobState] = []
        try:
            while True:
                over += self._settled()
                self._begin()
                if until_empty and not self._running and not self.queue.entries():
                    return over
                if self.wait(POLL_S):
                    return over + self._stop()
        finally:
            for _, lock, process in self._running:
                process.kill()
                process.wait()
                lock.close()

    def _begin(self) -> None:
        """Do what is due."""
        for entry in self.queue.expire():
            self.tell(Event("expired", "Expired", entry.id, "Expired"))
        self.fire()
        while len(self._running) < self.max_running and (taken := self.queue.take()):
            entry, lock = taken
            try:
                self.reached("attempt-step-1")
                process = self.start(entry, lock.fileno())
            except BaseException:
                lock.close()
                raise
            self._running.append((entry, lock, process))
            self.tell(Event("begins", f"attempt {entry.attempts}: {entry.folder}", entry.id))

    def _settled(self) -> list[JobState]:
        """Do step 4 of the jobs whose processes have ended; return those that are over."""
        over = []
        for one in [one for one in self._running if one[2].poll() is not None]:
            over.append(self._settle(one[0]))
            self.reached("attempt-step-4")
            self._running.remove(one)
            one[1].close()
        return [found for found in over if found is not None]

    def _settle(self, entry: Entry) -> JobState | None:
        """Return the state of a job that is over; None: it waits again."""
        job = entry.job
        found = job.state()
        if found.state not in OVER:
            found = JobState(state="Failed", reason=DIED, passing=True, updated_us=0)
        stopped = found.state == "Stopped"  # by `jobs stop`, or with its runner
        passing = found.state == "Failed" and found.passing
        failures, why = entry.failures + passing, f": {found.reason}" if found.reason else ""
        if (stopped and not job.stop_requested) or (passing and failures < self.max_attempts):
            pause_s = min(self.first_pause_s * 2.0 ** min(failures - 1, 64), MAX_PAUSE_US / 1e6)
            pause_s *= random.uniform(0.75, 1.0) if passing else 0.0  # no two jobs have the same
            self.queue.again(entry, pause_s, found.reason, failed=passing)
            text = f"{found.state}, next try in {pause_s:.0f} s{why}"
            self.tell(Event("again", text, entry.id, found.state))
            return None
        if found.reason == DIED:
            job.write_state("Failed", DIED)
        self.queue.finish(entry.id)
        self.tell(Event("ended", f"{found.state}{why}", entry.id, found.state))
        return found

    def _stop(self) -> list[JobState]:
        """Let the jobs end after the shards that they score now; they wait again."""
        over: list[JobState] = []
        for entry, _, process in self._running:
            process.terminate()
            self.tell(Event("wait", "the job ends after its current shards", entry.id))
        while self._running and not self.hurry():
            over += self._settled()
            self.wait(POLL_S)
        return over
