"""A runner: takes jobs from the queue, and starts a process for each attempt.

It writes nothing into a job's folder but the state Expired: the attempts write all else. A runner
that was stopped for long and goes on kills its processes whose claims were taken away.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streams.batch.jobs.job_folder import Held, JobFolder
from streams.batch.queue.attempt import Result
from streams.batch.queue.database import kept_open
from streams.batch.queue.entries import Entry
from streams.batch.queue.job_queue import DIED, JobQueue
from streams.batch.queue.outcome import Retrying
from streams.contract.errors import MalformedRecord, Retryable
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.processes import this_process

POLL_S = 0.2
Until = Literal["stopped", "empty", "nothing due"]


@dataclass(frozen=True)
class Event:
    """What a runner reports."""

    kind: Literal["begins", "ended", "again", "taken back", "expired", "schedule", "wait"]
    text: str
    job: str | None = None
    state: str | None = None


@dataclass
class Runner:
    """Runs jobs of one state folder.

    command  the command line of an attempt
    fire     queues what schedules have due
    wait     waits so many seconds, returns whether to stop; `hurry`: stop at once
    """

    queue: JobQueue
    command: Callable[[Entry], list[str]]
    tell: Callable[[Event], None]
    wait: Callable[[float], bool]
    fire: Callable[[], None] = lambda: None
    hurry: Callable[[], bool] = lambda: False
    max_running: int = 1
    lease_s: float = 30.0
    retrying: Retrying = field(default_factory=Retrying)
    reached: Failpoint = unarmed
    name: str = field(default_factory=lambda: f"{socket.gethostname()}/{os.getpid()}")
    _running: list["_Running"] = field(default_factory=list)
    _complaint: str = ""

    def run(self, until: Until = "stopped") -> list[Result]:
        """Run jobs until there is nothing left, or until it is stopped; return how those ended that
        are over."""
        over: list[Result] = []
        stopped = False
        try:
            with kept_open(self.queue.state):
                while not stopped:
                    with self._while_busy():
                        over += self._ended()
                        self._look()
                        if self._done(until):
                            return over
                    stopped = self.wait(POLL_S)
                return over + self._stop()
        finally:
            for one in self._running:
                one.kill()

    def _look(self) -> None:
        """Do what is due."""
        for entry, why in self.queue.take_back(self.retrying):
            self.tell(Event("taken back", f"taken back from {entry.runner}: {why}", entry.id))
        for one in self._running:
            if not one.ended and self.queue.current(one.entry.id, one.entry.fence) is None:
                one.end(self.queue)
            one.renew(self.queue, self.lease_s)
        self._expire()
        self.fire()
        while len(self._running) < self.max_running:
            claimed = self.queue.claim(self.name, this_process(), self.lease_s)
            if claimed is None:
                break
            self.reached("attempt-step-1")
            self._running.append(_Running(claimed, self.command(claimed)))
            self.tell(Event("begins", f"attempt {claimed.attempts}: {claimed.folder}", claimed.id))

    def _ended(self) -> list[Result]:
        over = []
        for one in [one for one in self._running if one.ended]:
            self._running.remove(one)
            result, job = one.result(), one.entry.id
            if result is None and (result := self._died(one.entry)) is None:
                continue  # its claim was taken away
            why = f": {result.reason}" if result.reason else ""
            if result.again_s is None:
                over.append(result)
                self.tell(Event("ended", f"{result.state}{why}", job, result.state))
            else:
                text = f"{result.state}, next try in {result.again_s:.0f} s{why}"
                self.tell(Event("again", text, job, result.state))
        return over

    def _died(self, entry: Entry) -> Result | None:
        """Let a job wait again whose process has ended without an answer, as after a kill."""
        pause_s = self.retrying.pause_s(entry.failures + 1)
        if not self.queue.again(entry.id, entry.fence, pause_s, DIED, failed=True):
            return None
        return Result(state="Failed", reason=DIED, again_s=pause_s)

    def _expire(self) -> None:
        for entry in self.queue.expired():
            if expire(self.queue, entry):
                self.tell(Event("expired", "Expired", entry.id, "Expired"))

    def _done(self, until: Until) -> bool:
        if until == "stopped" or self._running:
            return False
        return until == "nothing due" or not self.queue.entries()

    def _stop(self) -> list[Result]:
        """Let the jobs end after the shards that they score now; they wait again."""
        over: list[Result] = []
        for one in self._running:
            one.ask_to_stop()
        if self._running:
            self.tell(Event("wait", f"{len(self._running)} jobs end after their current shards"))
        while self._running and not self.hurry():
            with self._while_busy():
                over += self._ended()
                for one in self._running:
                    one.renew(self.queue, self.lease_s)
            self.wait(POLL_S)
        return over

    @contextmanager
    def _while_busy(self) -> Iterator[None]:
        """Try again later what another process locks, and end that if its lease is over; say so
        once."""
        try:
            yield
            self._complaint = ""
        except Retryable as exc:
            if str(exc) != self._complaint:
                self.tell(Event("wait", str(exc)))
            self._complaint = str(exc)
            with suppress(Retryable):
                self.queue.end_overdue()


def expire(queue: JobQueue, entry: Entry) -> bool:
    """End a job that has waited too long; return whether it was still waiting."""
    folder = JobFolder(Path(entry.folder))
    if not folder.submitted:
        return queue.withdraw(entry.id, "Expired")
    try:
        with folder.locked():
            if (now := queue.entry(entry.id)) is None or not now.waits:
                return False
            folder.write_state("Expired", "it has waited longer than --expires-after")
            return queue.withdraw(entry.id, "Expired")
    except Held:
        return False


class _Running:
    """A process that makes an attempt. It is killed with this one (Linux)."""

    def __init__(self, entry: Entry, command: list[str]) -> None:
        self.entry = entry
        # the process lets the signal through when it can handle it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Result | None:
        """Return what an ended process has answered; None if it died, or has lost its claim."""
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            line = answers.read()
        with suppress(MalformedRecord):
            return Result.decode(line)
        return None

    def renew(self, queue: JobQueue, lease_s: float) -> None:
        queue.renew(self.entry.id, self.entry.fence, lease_s, begun=False)

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self, queue: JobQueue) -> None:
        """Kill a process whose claim is not its own any more, or let one end that has ended it."""
        entry = queue.entry(self.entry.id)
        if entry is not None and entry.fence != self.entry.fence:
            self.kill()
