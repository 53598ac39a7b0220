"""A worker's Prometheus metrics, readiness and liveness.

Metrics are always collected; streams.runtime.health serves them. A worker is ready while an
assignment is loaded and its session with the brokers lasts, and alive while flushes end in time.
"""

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest

STALLED_S = 60.0  # without a finished flush; a flush waits for an unavailable broker
REASONS = 32  # labels per counter: a device may send any reason for a drop
OTHER = "other"
LABEL_LENGTH = 60
FLUSH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAINTENANCE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The worker's metrics in their own registry. Thread-safe. in_session: whether its partitions
    are still its own."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        in_session: Callable[[], bool] = lambda: True,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._assigned = False
        self._clock, self._in_session = clock, in_session
        self._flushed_at = clock()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.rows_sealed = counter("tidewheel_rows", "Scored events in the store.").inc
        text = "Labels stored that became known after their events."
        self.labelled = counter("tidewheel_late_labels", text).inc
        text = "Commits of late labels that windows' reports do not count yet."
        self.labels_waiting = gauge("tidewheel_waiting_labels", text).set
        text = "Windows reported; late ones are revisions of an earlier report."
        windows = counter("tidewheel_windows", text, ["late"])
        self._windows = {late: windows.labels("yes" if late else "no") for late in (True, False)}
        text = "Messages moved to dead-letters."
        self.dead_letter = _ByReason(counter("tidewheel_dead_letters", text, ["reason"])).count
        text = "Events declared dropped, by a device or because they cannot be scored."
        self.dropped = _ByReason(counter("tidewheel_dropped_rows", text, ["reason"])).count
        self._open_rows = gauge("tidewheel_open_rows", "Events in windows that are not sealed.")
        text = "Messages read and not acknowledged."
        self._in_flight = gauge("tidewheel_messages_in_flight", text)
        text = "Now minus the oldest watermark of a device with open windows."
        self.watermark_delay = gauge("tidewheel_watermark_delay_seconds", text).set
        text = "Messages from the committed offset to the end of an owned partition."
        self._lag = gauge("tidewheel_lag_messages", text, ["partition"])
        self._teacher = Info("tidewheel_teacher", "The teacher that scores.", registry=registry)
        times = partial(Histogram, registry=registry, buckets=FLUSH_BUCKETS)
        self.scoring = times("tidewheel_scoring_seconds", "Step 1 of a commit.").observe
        self.commit = times("tidewheel_commit_seconds", "Steps 2 to 5 of a commit.").observe
        name, text = "tidewheel_maintenance_seconds", "Compaction and vacuum of the store."
        self.maintenance = times(name, text, buckets=MAINTENANCE_BUCKETS).observe

    def window_reported(self, late: bool, windows: int = 1) -> None:
        self._windows[late].inc(windows)

    def buffered(self, rows: int, messages: int) -> None:
        """Set the current numbers of unsealed rows and unacknowledged messages."""
        self._open_rows.set(rows)
        self._in_flight.set(messages)

    def lag(self, partition: int, messages: int) -> None:
        if self._in_session():
            self._lag.labels(str(partition)).set(messages)

    def forget_partitions(self) -> None:
        """Clear the metrics of revoked partitions."""
        self._lag.clear()
        self.buffered(0, 0)
        self.labels_waiting(0)
        self.watermark_delay(0)

    def teacher(self, version: str) -> None:
        self._teacher.info({"version": version})

    def assigned(self, ready: bool) -> None:
        self._assigned = ready

    @property
    def ready(self) -> bool:
        return self._assigned and self._in_session()

    def flushed(self) -> None:
        self._flushed_at = self._clock()

    @property
    def alive(self) -> bool:
        return self._clock() - self._flushed_at < STALLED_S

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format; no lag where the ends are not known."""
        if not self._in_session():
            self._lag.clear()
        return generate_latest(self.registry)


class _ByReason:
    """A counter by reason; reasons beyond the first REASONS are counted as OTHER.

    This bounds memory, here and in Prometheus, whatever reasons a device sends.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._known: set[str] = set()

    def count(self, reason: str, count: int = 1) -> None:
        label = reason[:LABEL_LENGTH]
        if len(self._known) < REASONS:
            self._known.add(label)
        self._counter.labels(label if label in self._known else OTHER).inc(count)
