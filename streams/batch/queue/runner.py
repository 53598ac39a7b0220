"""A runner: takes jobs from the queue, and starts a process for each attempt. The numbered steps:

1. the job's folder is locked, and an attempt is counted
2. the process of the attempt submits the job if that has not been done: a scheduled one
3. the job ends in one of its states
4. it leaves the queue, or is Scheduled and waits for another attempt

The runner holds the lock until step 4 is done, its process until step 3. A crash frees the lock:
the next runner takes the job again, and where it has ended already it only does step 4.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Literal, NamedTuple, Protocol

from streams.batch.queue.job_queue import MAX_PAUSE_US, Entry, JobQueue
from streams.batch.records.progress import OVER, JobState
from streams.contract.errors import Retryable
from streams.runtime.failpoints import Failpoint, unarmed

POLL_S = 0.2
DIED = "its process died"
Until = Literal["stopped", "empty", "nothing due"]


class Event(NamedTuple):
    """What a runner reports."""

    kind: Literal["begins", "ended", "again", "expired", "schedule", "wait"]
    text: str
    job: str | None = None
    state: str | None = None


class Process(Protocol):
    """The process of an attempt."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class Running(NamedTuple):
    """A job that this runner has taken."""

    entry: Entry
    lock: IO[str]
    process: Process


@dataclass
class Runner:
    """Runs jobs of one state folder.

    start         starts the process of an attempt, which inherits the lock
    fire          queues what schedules have due
    wait          waits so many seconds, returns whether to stop; `hurry`: stop at once
    max_attempts  that fail of what may pass; first_pause_s: before the second one, then doubled
    """

    queue: JobQueue
    start: Callable[[Entry, int], Process]
    tell: Callable[[Event], None]
    wait: Callable[[float], bool]
    fire: Callable[[], None] = lambda: None
    hurry: Callable[[], bool] = lambda: False
    max_running: int = 1
    max_attempts: int = 5
    first_pause_s: float = 30.0
    reached: Failpoint = unarmed
    _running: list[Running] = field(default_factory=list)

    def run(self, until: Until = "stopped") -> list[JobState]:
        """Run jobs until there is nothing left, or until it is stopped; return how those ended that
        are over."""
        over: list[JobState] = []
        try:
            while True:
                with suppress(Retryable):  # another process writes the queue
                    over += self._settled()
                    self._begin()
                    if self._done(until):
                        return over
                if self.wait(POLL_S):
                    return over + self._stop()
        finally:
            for one in self._running:
                one.process.kill()
                one.process.wait()
                one.lock.close()

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
            self._running.append(Running(entry, lock, process))
            self.tell(Event("begins", f"attempt {entry.attempts}: {entry.folder}", entry.id))

    def _settled(self) -> list[JobState]:
        """Do step 4 of the jobs whose processes have ended; return those that are over."""
        over = []
        for one in [one for one in self._running if one.process.poll() is not None]:
            found = self._settle(one.entry)
            self.reached("attempt-step-4")
            self._running.remove(one)
            one.lock.close()
            over += [] if found is None else [found]
        return over

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
            pause_s = self._pause_s(failures) if passing else 0.0
            job.write_state("Scheduled", found.reason)
            self.queue.again(entry, pause_s, found.reason, failed=passing)
            text = f"{found.state}, next try in {pause_s:.0f} s{why}"
            self.tell(Event("again", text, entry.id, found.state))
            return None
        if found.reason == DIED:
            job.write_state("Failed", DIED)
        self.queue.finish(entry.id, found.state, found.reason)
        self.tell(Event("ended", f"{found.state}{why}", entry.id, found.state))
        return found

    def _pause_s(self, failures: int) -> float:
        """Return the pause after so many failures, of which no two jobs have the same."""
        pause_s = min(self.first_pause_s * 2.0 ** (min(failures, 64) - 1), MAX_PAUSE_US / 1e6)
        return pause_s * random.uniform(0.75, 1.0)

    def _done(self, until: Until) -> bool:
        if until == "stopped" or self._running:
            return False
        return until == "nothing due" or not self.queue.entries()

    def _stop(self) -> list[JobState]:
        """Let the jobs end after the shards that they score now; they wait again."""
        over: list[JobState] = []
        for one in self._running:
            one.process.terminate()
        if self._running:
            self.tell(Event("wait", f"{len(self._running)} jobs end after their current shards"))
        while self._running and not self.hurry():
            with suppress(Retryable):
                over += self._settled()
            self.wait(POLL_S)
        return over
