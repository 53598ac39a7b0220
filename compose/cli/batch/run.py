"""`tidewheel jobs run`: the runner of a state folder's queue; and the process of one attempt,
`python -m compose.cli.batch.run`, which it starts.

That process inherits the lock of the job's folder. What becomes of the job is in its state: the
runner looks there when it has ended.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, MetricsHost, MetricsPort, State
from compose.cli.batch.score import EXIT_CODES
from compose.reports.terminal import moment, say
from streams.batch.jobs.job_queue import Event, JobQueue, Runner
from streams.batch.progress import OVER
from streams.contract.documents import encoded
from streams.contract.errors import TidewheelError, UsageError, line_of
from streams.runtime.failpoints import read_failpoint
from streams.runtime.health import HOST, serve
from streams.runtime.process import Interrupts, by_thread, end_with_parent


def run(
    state: State = DEFAULT_STATE,
    max_running: Annotated[
        int, typer.Option(min=1, max=64, help="Jobs that this runner runs at once.")
    ] = 1,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no job waits or runs; for cron.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = HOST,
    json: AsJson = False,
) -> None:
    """Run queued jobs and schedules, as a service: the oldest first.

    Several runners share a queue. SIGTERM and Ctrl-C end the jobs after their current shards, and
    they wait again; a second signal ends them at once. With --until-empty it exits 1 if a job
    failed, and 3 if one is partial.
    """
    from streams.batch.jobs.schedules import Schedules

    def tell(event: Event) -> None:
        if metrics is not None:
            metrics.told(event)
        if json:
            sys.stdout.write(encoded(event._asdict()).decode() + "\n")
            sys.stdout.flush()
            return
        about = f"{event.job}: " if event.job else ""
        say(f"{moment(queue.now())}  {about}{event.text}")

    reached, queue = read_failpoint(os.environ), JobQueue(state)
    queue.open()
    schedules = Schedules(queue, reached)
    metrics = None
    if metrics_port is not None:
        metrics = QueueMetrics(queue, lambda: sum(bool(one.problem) for one in schedules.all()))
        server = serve(metrics, metrics_port, metrics_host)
        typer.echo(f"metrics on {metrics_host}:{server.port}", err=True)

    def fire() -> None:
        if metrics is not None:
            metrics.looked()
        for line in schedules.fire():
            tell(Event("schedule", line))

    with Interrupts() as interrupts:
        interrupts.patient = True

        def wait(seconds: float) -> bool:
            if interrupts.stop.is_set():
                time.sleep(seconds)
                return True
            return interrupts.stop.wait(seconds)

        runner = Runner(
            queue,
            lambda entry, lock: start(state, entry.id, lock),
            tell,
            wait,
            fire,
            hurry=lambda: interrupts.seen > 1,
            max_running=max_running,
            reached=reached,
        )
        over = runner.run(until_empty=until_empty)
    codes = {EXIT_CODES.get(found.state, 0) for found in over} if until_empty else {0}
    code = next((code for code in (1, 3) if code in codes), 0)
    if code:
        raise typer.Exit(code)


# --- metrics ------------------------------------------------------------------------------------

STALLED_S = 60.0  # without a look at the queue


class QueueMetrics:
    """A runner's Prometheus metrics: what waits and runs is read from the queue when it is asked
    for; what has ended is counted by this runner, from its start on. `held_up` returns how many
    schedules cannot queue what is due."""

    def __init__(self, queue: JobQueue, held_up: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter  # only with --metrics-port

        self._queue, self._looked, self._registry = queue, time.monotonic(), CollectorRegistry()
        text = "Jobs that ended here, by state."
        self._ended = Counter("tidewheel_jobs_ended", text, ["state"], registry=self._registry)
        for state in OVER:
            self._ended.labels(state)
        text = "Attempts here that are made again later."
        self._again = Counter("tidewheel_jobs_retried", text, registry=self._registry)
        text = "Jobs that run, with any runner of the state folder."
        self._gauge("jobs_running", text, lambda: len(queue.entries()) - len(self._waiting()))
        self._gauge("jobs_waiting", "Jobs that wait.", lambda: len(self._waiting()))
        text = "Since the submission of the oldest job that waits and is due; 0: none."
        self._gauge("jobs_oldest_wait_seconds", text, self._oldest_s)
        self._gauge("schedules_held_up", "Schedules that cannot queue what is due.", held_up)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        from prometheus_client import Gauge

        def value() -> float:
            try:
                return read()
            except TidewheelError:  # the queue cannot be read
                return math.nan

        Gauge(f"tidewheel_{name}", text, registry=self._registry).set_function(value)

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._looked < STALLED_S

    ready = alive

    def looked(self) -> None:
        """Note that the runner has looked at the queue."""
        self._looked = time.monotonic()

    def told(self, event: Event) -> None:
        """Count what a runner reports."""
        if event.kind in ("ended", "expired"):
            self._ended.labels(event.state).inc()
        if event.kind == "again":
            self._again.inc()

    def text(self) -> bytes:
        from prometheus_client.exposition import generate_latest

        return generate_latest(self._registry)

    def _waiting(self) -> list[int]:
        """Return when the jobs were submitted that wait: now for those that are not due."""
        found = [entry for entry in self._queue.entries() if not entry.job.running]
        now_us = self._queue.now()
        return [entry.submitted_us if entry.next_us <= now_us else now_us for entry in found]

    def _oldest_s(self) -> float:
        now_us = self._queue.now()
        return max(0.0, (now_us - min(self._waiting(), default=now_us)) / 1e6)


# --- an attempt ---------------------------------------------------------------------------------


def start(state: Path, identity: str, lock: int) -> "subprocess.Popen[bytes]":
    """Start an attempt, which lets SIGTERM through when it can handle it."""
    module = [sys.executable, "-m", "compose.cli.batch.run"]
    words = [str(state.absolute()), identity, str(lock), str(os.getpid())]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            [*module, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def main() -> None:
    state, identity, lock, parent = sys.argv[1:]
    if not end_with_parent(int(parent)):
        return
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, by_thread(stop.set))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        attempt(Path(state), identity, int(lock), stop.is_set)
    except TidewheelError as exc:  # the queue itself, or a disk: the runner sees no state
        sys.exit(f"tidewheel: {exc}")


def attempt(state: Path, identity: str, lock: int, stopping: Callable[[], bool]) -> None:
    """Do the steps 2 and 3 of streams/batch/jobs/job_queue.py."""
    from compose.cli.batch.submitting import specified
    from streams.batch.jobs.job import Job
    from streams.batch.jobs.job_folder import JobIndex
    from streams.batch.rows import may_pass
    from streams.contract.task import load_task
    from streams.runtime.failpoints import read_failpoint

    reached = read_failpoint(os.environ)
    entry = JobQueue(state).entry(identity)
    if entry is None:
        return
    job, settings = entry.job, entry.settings
    try:
        os.chdir(settings.cwd)
        if not job.submitted:
            _, found, models = specified(settings.changed(state=state))
            job.submit(found.replace(id=identity), models, reached)
            job.write_state("Submitted")
        reached("attempt-step-2")
        if job.specification().id != identity:
            raise UsageError(f"{job.folder} is another job, {job.specification().id}")
        JobIndex(state).add(identity, job)
        if entry.attempts > 1 and job.state().state in OVER:  # its runner died before step 4
            return
        task = load_task(job.specification().task.reference)
        Job(
            job, task, settings=settings, stopping=stopping, reached=reached, lock=lock,
            from_queue=True,
        ).run()  # fmt: skip
    except (TidewheelError, OSError) as exc:
        job.write_state("Failed", line_of(exc), passing=may_pass(exc))
    reached("attempt-step-3")


if __name__ == "__main__":
    main()
