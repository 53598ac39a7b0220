"""A runner's Prometheus metrics: what waits and runs is read from the queue when it is asked for;
what has ended is counted by this runner, from its start on. Loaded only with `--metrics-port`."""

import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest

from streams.batch.jobs.job_queue import Event, JobQueue
from streams.batch.records.progress import OVER
from streams.contract.errors import TidewheelError

STALLED_S = 60.0  # without a look at the queue


class QueueMetrics:
    """`held_up` returns how many schedules cannot queue what is due."""

    def __init__(self, queue: JobQueue, held_up: Callable[[], int]) -> None:
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
        return generate_latest(self._registry)

    def _waiting(self) -> list[int]:
        """Return when the jobs were submitted that wait: now for those that are not due."""
        found = [entry for entry in self._queue.entries() if not entry.job.running]
        now_us = self._queue.now()
        return [entry.submitted_us if entry.next_us <= now_us else now_us for entry in found]

    def _oldest_s(self) -> float:
        now_us = self._queue.now()
        return max(0.0, (now_us - min(self._waiting(), default=now_us)) / 1e6)
