"""A runner's Prometheus metrics: what waits and runs is read from the queue when it is asked for;
what has ended is counted by this runner, from its start on. Loaded only with `--metrics-port`."""

import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from streams.batch.queue.job_queue import Event, JobQueue
from streams.batch.records.progress import OVER
from streams.contract.errors import TidewheelError

STALLED_S = 60.0  # without a look at the queue


class QueueMetrics(Collector):
    """Thread-safe: the server's threads read, the runner's tells. `held_up` returns how many
    schedules cannot queue what is due."""

    def __init__(
        self,
        queue: JobQueue,
        held_up: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._held_up, self._clock = queue, held_up, clock
        self._lock, self._looked = threading.Lock(), clock()
        self._ended, self._again = dict.fromkeys(OVER, 0), 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def alive(self) -> bool:
        return self._clock() - self._looked < STALLED_S

    ready = alive

    def looked(self) -> None:
        """Note that the runner has looked at the queue."""
        self._looked = self._clock()

    def told(self, event: Event) -> None:
        """Count what a runner reports."""
        with self._lock:
            if event.kind in ("ended", "expired") and event.state is not None:
                self._ended[event.state] = self._ended.get(event.state, 0) + 1
            self._again += event.kind == "again"

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Return nothing: a registry would ask the queue for its names otherwise."""
        return []

    def collect(self) -> Iterator[Metric]:
        text = "Jobs that ended here, by state."
        ended = CounterMetricFamily("tidewheel_jobs_ended", text, labels=["state"])
        with self._lock:
            for state, count in self._ended.items():
                ended.add_metric([state], count)
            yield ended
            text = "Attempts here that are made again later."
            yield CounterMetricFamily("tidewheel_jobs_retried", text, value=self._again)
        try:
            gauges = self._of_queue()
        except TidewheelError:  # none while the queue cannot be read
            return
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"tidewheel_{name}", text, value=value)

    def _of_queue(self) -> list[tuple[str, str, float]]:
        entries, now_us = self._queue.entries(), self._queue.now()
        waiting = [entry for entry in entries if not entry.job.running]
        due = [entry.submitted_us for entry in waiting if entry.next_us <= now_us]
        oldest_s = max(0.0, (now_us - min(due)) / 1e6) if due else 0.0
        running = len(entries) - len(waiting)
        oldest = "Since the submission of the oldest job that waits and is due; 0: none."
        return [
            ("jobs_waiting", "Jobs that wait.", len(waiting)),
            ("jobs_running", "Jobs that run, with any runner of the state folder.", running),
            ("jobs_oldest_wait_seconds", oldest, oldest_s),
            ("schedules_held_up", "Schedules that cannot queue what is due.", self._held_up()),
        ]
