"""What the controller tells Prometheus, made of the events on `rounds`; whoever started a run, its
events count. Loaded where `--metrics-port` is given only."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from streams.contract.documents import RoundEvent

PREFIX = "tidewheel_federation"
SILENT_S = 60.0  # without a look at the topics: it hangs, or waits for the broker
LAST = {
    "seconds": "How long the last round that was aggregated took.",
    "admitted": "Its admitted updates.",
    "devices_before": "The devices' accuracy with the weights that it sent out.",
    "held_out": "The accuracy of the last weights for the people held out.",
    "epsilon": "What the task's private rounds have cost so far.",
}


class FederationMetrics(Collector):
    """Counts since the controller began to read, which is the beginning of the topic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._looked = -SILENT_S
        self._runs: Counter[str] = Counter()
        self._rounds: Counter[str] = Counter()
        self._updates: Counter[tuple[str, str]] = Counter()
        self._last: dict[str, float] = {}
        self._going: set[str] = set()
        self._seen: set[int] = set()  # the topic is read again after an outage of the broker
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def looked(self) -> None:
        """The controller has seen to its topics."""
        self._looked = self._clock()

    def take(self, event: RoundEvent) -> None:
        slug = event.reason.partition(":")[0][:40]
        with self._lock:
            same = hash((event.run, event.time_us, event.kind, event.device))
            if same in self._seen:
                return
            self._seen.add(same)
            if event.kind == "finished":
                self._going.discard(event.run)
                self._runs[slug if slug in ("promoted", "rejected") else "failed"] += 1
            else:
                self._going.add(event.run)
            if event.kind == "aggregated" or (event.kind == "failed" and not event.device):
                self._rounds[event.kind] += 1
            if event.kind == "failed" and event.device:
                self._updates["failed", ""] += 1
            if event.kind in ("admitted", "refused"):
                self._updates[event.kind, slug if event.kind == "refused" else ""] += 1
            self._last |= {n: v for n, v in event.metrics.items() if self._tells(event, n)}

    @staticmethod
    def _tells(event: RoundEvent, name: str) -> bool:
        return name in LAST and event.kind in ("aggregated", "evaluated")

    @property
    def ready(self) -> bool:
        return self.alive

    @property
    def alive(self) -> bool:
        return self._clock() - self._looked < SILENT_S

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            runs, rounds, updates = dict(self._runs), dict(self._rounds), dict(self._updates)
            last, going = dict(self._last), len(self._going)
        found = CounterMetricFamily(
            f"{PREFIX}_runs", "Runs that have finished.", labels=["outcome"]
        )
        for outcome, count in runs.items():
            found.add_metric([outcome], count)
        yield found
        found = CounterMetricFamily(f"{PREFIX}_rounds", "Rounds, by outcome.", labels=["outcome"])
        for outcome, count in rounds.items():
            found.add_metric([outcome], count)
        yield found
        text = "Answers of devices: admitted; refused, and why; failed."
        found = CounterMetricFamily(f"{PREFIX}_updates", text, labels=["outcome", "reason"])
        for labels, count in updates.items():
            found.add_metric([*labels], count)
        yield found
        yield GaugeMetricFamily(f"{PREFIX}_runs_going", "Runs that have not finished.", going)
        for name, text in LAST.items():
            if name in last:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, last[name])
