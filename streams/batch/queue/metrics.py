"""A runner's Prometheus metrics: what waits and runs is read from the queue when it is asked for;
what has ended is counted by this runner, from its start on. Loaded only with `--metrics-port`."""

import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from streams.batch.queue.job_queue import JobQueue
from streams.batch.queue.runner import Event
from streams.contract.errors import TidewheelError

STALLED_S = 60.0  # without a look at the queue
ENDS = ("Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired")


class QueueMetrics(Collector):
    """Thread-safe: the server's threads read, the runner's tells."""

    def __init__(
        self,
        queue: JobQueue,
        held_up: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held_up` returns how many schedules cannot queue what is due."""
        self._queue, self._held_up, self._clock = queue, held_up, clock
        self._lock = threading.Lock()
        self._looked = clock()
        self._ended = dict.fromkeys(ENDS, 0)
        self._again = self._taken_back = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def ready(self) -> bool:
        return self.alive

    @property
    def alive(self) -> bool:
        return self._clock() - self._looked < STALLED_S

    def looked(self) -> None:
        """Note that the runner has looked at the queue."""
        self._looked = self._clock()

    def told(self, event: Event) -> None:
        """Count what a runner reports."""
        with self._lock:
            if event.kind in ("ended", "expired") and event.state is not None:
                self._ended[event.state] = self._ended.get(event.state, 0) + 1
            self._again += event.kind == "again"
            self._taken_back += event.kind == "taken back"

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Return nothing: a registry would ask the queue for its names otherwise."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._of_queue()
        with self._lock:
            ended = CounterMetricFamily(
                "tidewheel_jobs_ended", "Jobs that ended here, by state.", labels=["state"]
            )
            for state, count in self._ended.items():
                ended.add_metric([state], count)
            yield ended
            text = "Attempts here that are made again later."
            yield CounterMetricFamily("tidewheel_jobs_retried", text, value=self._again)
            text = "Claims that this runner took back from a process that was gone or stood still."
            yield CounterMetricFamily("tidewheel_jobs_taken_back", text, value=self._taken_back)

    def _of_queue(self) -> Iterator[Metric]:
        """Yield gauges; none while the queue cannot be read."""
        try:
            entries, now_us = self._queue.entries(), self._queue.now()
            held_up = self._held_up()
        except TidewheelError:
            return
        waiting = [entry for entry in entries if entry.waits]
        due = [entry.submitted_us for entry in waiting if entry.next_us <= now_us]
        oldest_s = (now_us - min(due)) / 1e6 if due else 0.0
        yield GaugeMetricFamily("tidewheel_jobs_waiting", "Jobs that wait.", value=len(waiting))
        text = "Jobs that run, with any runner of the state folder."
        yield GaugeMetricFamily("tidewheel_jobs_running", text, value=len(entries) - len(waiting))
        text = "Since the submission of the oldest job that waits and is due; 0: none."
        yield GaugeMetricFamily(
            "tidewheel_jobs_oldest_wait_seconds", text, value=max(0.0, oldest_s)
        )
        text = "Schedules that cannot queue what is due."
        yield GaugeMetricFamily("tidewheel_schedules_held_up", text, value=held_up)
