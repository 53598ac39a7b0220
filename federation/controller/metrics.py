"""What the controller tells Prometheus: of runs, made of the events on `rounds`, whoever started
them; of the rollout, made of the registry's decisions, whoever made them, and of what devices say.
Loaded where `--metrics-port` is given only."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from federation.registry.registry import Registry
from streams.contract.decisions import Decision, Release
from streams.contract.documents import DeviceState, RoundEvent

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
    """Counts since the beginning of the topic, and since the first decision."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall, self._lock = clock, wall, threading.Lock()
        self._looked = -SILENT_S
        self._leading = False
        self._decisions: Counter[str] = Counter()
        self._last: Decision | None = None
        self._stage_us = 0
        self._devices: dict[str, DeviceState] = {}
        self._runs: Counter[str] = Counter()
        self._rounds: Counter[str] = Counter()
        self._updates: Counter[tuple[str, str]] = Counter()
        self._figures: dict[str, float] = {}
        self._going: set[str] = set()
        self._seen: set[int] = set()  # the topic is read again after an outage of the broker
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def looked(self, *, leading: bool) -> None:
        """The controller has seen to its topics, or to whether another one leads still."""
        self._looked, self._leading = self._clock(), leading

    def heard(self, state: DeviceState) -> None:
        with self._lock:
            self._devices[state.device] = state

    def decided(self, registry: Registry, last: Release) -> None:
        """Take in the decisions up to `last` that are not counted yet."""
        seq = self._last.seq if self._last else 0
        if last.decision.seq <= seq:
            return
        fresh = [release.decision for release in registry.history(after=seq)]
        with self._lock:
            for decision in fresh:
                self._decisions[decision.kind] += 1
                self._stage_us = decision.time_us if decision.kind == "stage" else self._stage_us
                self._last = decision

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
            self._figures |= {n: v for n, v in event.metrics.items() if self._tells(event, n)}

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
            last, going = dict(self._figures), len(self._going)
            rollout = list(self._rollout())
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
        yield from rollout

    def _rollout(self) -> Iterator[Metric]:
        """Of the decisions, and of who refuses what they say."""
        leads = float(self._leading and self.alive)
        yield GaugeMetricFamily(f"{PREFIX}_leads", "Whether this controller is at work.", leads)
        found = CounterMetricFamily(f"{PREFIX}_decisions", "Since the first.", labels=["kind"])
        for kind, count in self._decisions.items():
            found.add_metric([kind], count)
        yield found
        if self._last is None:
            return
        standing = self._last.standing
        offered = standing.offered
        began = self._stage_us / 1e6
        for name, text, value in (
            ("decision", "The number of the last decision.", self._last.seq),
            ("offered_share", "Of the fleet that a version is offered to.", standing.share),
            ("stage", "Of the version on offer; 0: there is none.", standing.stage),
            (
                "stage_seconds",
                "Since the stage began; 0: nothing is on offer.",
                self._wall() - began if offered else 0.0,
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value)
        text = "Devices that do not serve what is decided, by version."
        gauge = GaugeMetricFamily(f"{PREFIX}_devices_refusing", text, labels=["model"])
        for ref in (standing.stable, offered):
            if ref is not None:
                who = [s for s in self._devices.values() if ref.model in s.refused]
                gauge.add_metric([ref.model], len(who))
        yield gauge
