"""A worker's Prometheus metrics, readiness and liveness.

Metrics are always collected; streams.runtime.health serves them. A worker is ready once an
assignment is loaded, and alive while flushes end in time.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest

STALLED_S = 60.0  # without a finished flush; a flush waits for an unavailable broker
REASONS = 32  # labels per counter: a device may send any reason for a drop
OTHER = "other"
LABEL_LENGTH = 60
FLUSH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAINTENANCE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The worker's metrics in their own registry. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._flushed_at = clock()
        self._ready = False
        self._make_counters(self.registry)
        self._make_gauges(self.registry)
        self._make_histograms(self.registry)

    def _make_counters(self, registry: CollectorRegistry) -> None:
        self._rows = Counter("tidewheel_rows", "Scored events in the store.", registry=registry)
        self._windows = Counter(
            "tidewheel_windows",
            "Windows reported; late ones are revisions of an earlier report.",
            ["late"],
            registry=registry,
        )
        self._letters = _ByReason(
            Counter(
                "tidewheel_dead_letters",
                "Messages moved to dead-letters.",
                ["reason"],
                registry=registry,
            )
        )
        self._dropped = _ByReason(
            Counter(
                "tidewheel_dropped_rows",
                "Events declared dropped, by a device or because they cannot be scored.",
                ["reason"],
                registry=registry,
            )
        )
        for late in ("yes", "no"):
            self._windows.labels(late)

    def _make_gauges(self, registry: CollectorRegistry) -> None:
        self._open_rows = Gauge(
            "tidewheel_open_rows", "Events in windows that are not sealed.", registry=registry
        )
        self._in_flight = Gauge(
            "tidewheel_messages_in_flight",
            "Messages read and not acknowledged.",
            registry=registry,
        )
        self._delay = Gauge(
            "tidewheel_watermark_delay_seconds",
            "Now minus the oldest watermark of a device with open windows.",
            registry=registry,
        )
        self._lag = Gauge(
            "tidewheel_lag_messages",
            "Messages from the committed offset to the end of an owned partition.",
            ["partition"],
            registry=registry,
        )
        self._teacher = Info("tidewheel_teacher", "The teacher that scores.", registry=registry)

    def _make_histograms(self, registry: CollectorRegistry) -> None:
        self._scoring = Histogram(
            "tidewheel_scoring_seconds",
            "Step 1 of a commit.",
            registry=registry,
            buckets=FLUSH_BUCKETS,
        )
        self._commit = Histogram(
            "tidewheel_commit_seconds",
            "Steps 2 to 5 of a commit.",
            registry=registry,
            buckets=FLUSH_BUCKETS,
        )
        self._maintenance = Histogram(
            "tidewheel_maintenance_seconds",
            "Compaction and vacuum of the store.",
            registry=registry,
            buckets=MAINTENANCE_BUCKETS,
        )

    def rows_sealed(self, count: int) -> None:
        self._rows.inc(count)

    def window_reported(self, late: bool) -> None:
        self._windows.labels("yes" if late else "no").inc()

    def dead_letter(self, reason: str) -> None:
        self._letters.count(reason)

    def dropped(self, reason: str, count: int) -> None:
        """Count events that were declared dropped."""
        self._dropped.count(reason, count)

    def buffered(self, rows: int, messages: int) -> None:
        """Set the current numbers of unsealed rows and unacknowledged messages."""
        self._open_rows.set(rows)
        self._in_flight.set(messages)

    def watermark_delay(self, seconds: float) -> None:
        self._delay.set(seconds)

    def lag(self, partition: int, messages: int) -> None:
        self._lag.labels(str(partition)).set(messages)

    def forget_partitions(self) -> None:
        """Clear the metrics of revoked partitions."""
        self._lag.clear()
        self.buffered(0, 0)
        self.watermark_delay(0)

    def scoring(self, seconds: float) -> None:
        self._scoring.observe(seconds)

    def commit(self, seconds: float) -> None:
        self._commit.observe(seconds)

    def maintenance(self, seconds: float) -> None:
        self._maintenance.observe(seconds)

    def teacher(self, version: str) -> None:
        """Set the version of the teacher."""
        self._teacher.info({"version": version})

    def assigned(self, ready: bool) -> None:
        """Set whether an assignment is loaded."""
        self._ready = ready

    def flushed(self) -> None:
        """Record the end of a flush."""
        self._flushed_at = self._clock()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def alive(self) -> bool:
        return self._clock() - self._flushed_at < STALLED_S

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
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
