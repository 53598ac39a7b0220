"""One attempt at a queued job, in a process of its own. The numbered steps:

1. a runner has claimed the job, under a new fence
2. this process is registered, and renews the lease from now on; it kills the processes of earlier
   claims, and holds the job's folder (flock)
3. the claim still holds
4. a scheduled job is submitted: its specification is written
5. the job ends in one of its states
6. a job that is tried again is Scheduled
7. it leaves the queue, or waits again

Everything that a job writes, it writes between 3 and 7, while it holds the folder. The kernel gives
the folder to another process only when this one and those that score for it are gone: a claim that
was taken away is over once its process is killed, and no write has to ask for the fence.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.batch.jobs.job_folder import Held, JobFolder
from streams.batch.jobs.retrying import may_pass
from streams.batch.queue.entries import Entry
from streams.batch.queue.job_queue import BUSY_S, JobQueue
from streams.batch.queue.outcome import Retrying, outcome
from streams.batch.records.progress import OVER
from streams.contract.documents import Document
from streams.contract.errors import TidewheelError, UsageError
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.processes import end, this_process

HOLD_WAIT_S = 20.0  # until the process of the claim before is gone
Submit = Callable[[Entry], None]  # step 4; the folder is held
Run = Callable[[Entry, int], None]  # step 5, with the lock's descriptor


class Result(Document):
    """How an attempt ended; `again_s`: the job waits again, for so long."""

    state: str
    reason: str = ""
    again_s: float | None = None


@dataclass
class Attempt:
    """One attempt under one claim.

    submit  makes the specification of a scheduled job
    run     does the job, up to its state
    """

    queue: JobQueue
    identity: str
    fence: int
    submit: Submit
    run: Run
    lease_s: float = 30.0
    retrying: Retrying = field(default_factory=Retrying)
    reached: Failpoint = unarmed
    hold_wait_s: float = HOLD_WAIT_S

    def work(self) -> Result | None:
        """Do the steps 2 to 7; return None where the claim is not ours any more."""
        entry = self.queue.current(self.identity, self.fence)
        if entry is None or not self.queue.register(entry, this_process(), self.lease_s):
            return None
        folder = JobFolder(Path(entry.folder))
        with Lease(self.queue, self.identity, self.fence, self.lease_s) as lease:
            for process in entry.previous:
                end(process)
            try:
                with folder.locked(self.hold_wait_s) as lock:
                    self.reached("attempt-step-2")
                    return self._hold(entry, folder, lock, lease)
            except Held as exc:
                lease.end()
                return self._again("Scheduled", str(exc), BUSY_S, failed=False)

    def _hold(self, entry: Entry, folder: JobFolder, lock: int, lease: "Lease") -> Result | None:
        if not self.queue.hold(self.identity, self.fence, self.lease_s):
            return None
        self.reached("attempt-step-3")
        error: BaseException | None = None
        try:
            self._submit_and_run(entry, folder, lock)
        except (TidewheelError, OSError) as exc:
            error = exc
        lease.end()  # a row that is gone from here on was removed by us
        return self._settle(entry, folder) if error is None else self._refused(entry, folder, error)

    def _submit_and_run(self, entry: Entry, folder: JobFolder, lock: int) -> None:
        if not folder.submitted:
            if entry.options.words is None:
                raise UsageError("its submission was not finished")
            self.submit(entry)
        self.reached("attempt-step-4")
        if folder.specification().id != entry.id:
            raise UsageError(f"{folder.folder} is another job, {folder.specification().id}")
        if folder.state().state in OVER:  # it ended, and was killed before step 7
            return
        if entry.failures >= self.retrying.max_attempts:
            folder.write_state("Failed", entry.reason)
        else:
            self.run(entry, lock)
        self.reached("attempt-step-5")

    def _settle(self, entry: Entry, folder: JobFolder) -> Result | None:
        """Steps 6 and 7 of a job that has ended."""
        status = folder.state()
        found = outcome(
            status, stop_asked=folder.stop_requested, failures=entry.failures,
            retrying=self.retrying,
        )  # fmt: skip
        if found.over:
            return self._finish(status.state, status.reason)
        folder.write_state("Scheduled", status.reason)
        self.reached("attempt-step-6")
        return self._again(status.state, status.reason, found.pause_s, failed=found.failed)

    def _refused(self, entry: Entry, folder: JobFolder, error: BaseException) -> Result | None:
        """Steps 6 and 7 of a job that cannot be submitted, or was refused before it had a state."""
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        failures = entry.failures + 1
        if may_pass(error) and failures < self.retrying.max_attempts:
            return self._again("Failed", reason, self.retrying.pause_s(failures), failed=True)
        if folder.submitted:
            folder.write_state("Failed", reason)
        return self._finish("Failed", reason)

    def _finish(self, state: str, reason: str) -> Result | None:
        done = self.queue.finish(self.identity, self.fence, state, reason)
        self.reached("attempt-step-7")
        return Result(state=state, reason=reason) if done else None

    def _again(self, state: str, reason: str, pause_s: float, *, failed: bool) -> Result | None:
        done = self.queue.again(self.identity, self.fence, pause_s, reason, failed=failed)
        self.reached("attempt-step-7")
        return Result(state=state, reason=reason, again_s=pause_s) if done else None


class Lease:
    """Renews a claim in a thread. Ends this process if another claim was made: it is about to be
    killed, and in another container nobody else can do it."""

    def __init__(self, queue: JobQueue, identity: str, fence: int, lease_s: float) -> None:
        self._renew: Callable[[], bool] = lambda: queue.renew(identity, fence, lease_s)
        self._pause_s, self._over = lease_s / 3, threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.end()

    def end(self) -> None:
        """Renew the claim no more."""
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._over.wait(self._pause_s):
            try:
                held = self._renew()
            except TidewheelError:  # another writer, a full disk: the next time
                continue
            if not held and not self._over.is_set():
                os.kill(os.getpid(), signal.SIGKILL)
