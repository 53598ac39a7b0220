"""The controller's Prometheus metrics: of all runs, from the events on `rounds`; of the rollout,
from the registry's decisions and the devices' states. Loaded only with `--metrics-port`."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry, Counter, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from federation.registry.registry import Registry
from streams.contract.decisions import Decision, Release
from streams.contract.documents import RoundEvent
from streams.fleet.view import FleetView

PREFIX = "tidewheel_federation"
SEEN = 20_000  # events of runs: more than a view of the fleet keeps
SILENT_S = 60.0  # without reading the topics: the controller hangs, or waits for the broker
LAST = {
    "seconds": "Duration of the last aggregated round.",
    "admitted": "Admitted updates of the last aggregated round.",
    "claims_capped": "Updates of the last aggregated round that claim more samples than count.",
    "devices_before": "Accuracy on devices of the weights that the last round sent.",
    "held_out": "Accuracy of the last weights on held-out devices.",
    "epsilon": "Privacy cost of the aggregates of the task's rounds so far.",
}


class FederationMetrics(Collector):
    """Counters since the beginning of the topic, and since the first decision. certificates: PEM
    files whose last moment of validity is exported; missing files are left out. view: of the fleet,
    which the controller's thread changes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        certificates: Sequence[Path] = (),
    ) -> None:
        self._certificates = certificates
        self._clock, self._wall, self._lock = clock, wall, threading.Lock()
        self._looked = -SILENT_S
        self._leading = False
        self._last: Decision | None = None
        self._stage_us = 0
        self.view = FleetView("")
        self._last_values: dict[str, float] = {}
        self._going: set[str] = set()
        self._seen: dict[
            int, None
        ] = {}  # the newest: they come again after an outage of the broker
        disable_created_metrics()  # type: ignore[no-untyped-call,unused-ignore]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._decisions = self._counter("decisions", "Decisions, by kind.", "kind")
        self._runs = self._counter("runs", "Runs that have finished.", "outcome")
        self._rounds = self._counter("rounds", "Rounds, by outcome.", "outcome")
        text = "Updates of devices: admitted; refused, with the reason; failed."
        self._updates = self._counter("updates", text, "outcome", "reason")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def looked(self, *, leading: bool) -> None:
        """Record that the controller has read its topics, or checked whether it leads."""
        self._looked, self._leading = self._clock(), leading

    def decided(self, registry: Registry, last: Release) -> None:
        """Count the new decisions up to `last`."""
        seq = self._last.seq if self._last else 0
        if last.decision.seq <= seq:
            return
        fresh = [release.decision for release in registry.history(after=seq)]
        with self._lock:
            for decision in fresh:
                self._decisions.labels(decision.kind).inc()
                self._stage_us = decision.time_us if decision.kind == "stage" else self._stage_us
                self._last = decision

    def take(self, event: RoundEvent) -> None:
        slug = event.reason.partition(":")[0][:40]
        with self._lock:
            same = hash((event.run, event.time_us, event.kind, event.device))
            if same in self._seen:
                return
            self._seen[same] = None
            if len(self._seen) > SEEN:
                del self._seen[next(iter(self._seen))]
            if event.kind == "finished":
                self._going.discard(event.run)
                self._runs.labels(slug if slug in ("promoted", "rejected") else "failed").inc()
            else:
                self._going.add(event.run)
            if event.kind == "aggregated" or (event.kind == "failed" and not event.device):
                self._rounds.labels(event.kind).inc()
            if event.kind == "failed" and event.device:
                self._updates.labels("failed", "").inc()
            if event.kind in ("admitted", "refused"):
                self._updates.labels(event.kind, slug if event.kind == "refused" else "").inc()
            if event.kind in ("aggregated", "evaluated"):
                self._last_values |= {n: v for n, v in event.metrics.items() if n in LAST}

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
            last, going = dict(self._last_values), len(self._going)
            rollout, fleet = list(self._rollout()), list(self._fleet())
        yield GaugeMetricFamily(f"{PREFIX}_runs_going", "Runs that have not finished.", going)
        for name, text in LAST.items():
            if name in last:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, last[name])
        yield from rollout
        yield from fleet
        name, text = (
            "tidewheel_certificate_not_after_seconds",
            "When a certificate ends, Unix time.",
        )
        ends = GaugeMetricFamily(name, text, labels=["file"])
        for path in self._certificates:
            if (end := not_after_s(path)) is not None:
                ends.add_metric([path.name], end)
        yield ends

    def _fleet(self) -> Iterator[Metric]:
        """Yield what the devices say of themselves, added up."""
        view, now_s = self.view, self._wall()
        states = list(view.devices.values())
        silent = sum(view.is_silent(state, now_s) for state in states)
        for name, text, value in (
            ("fleet_devices", "Devices that have reported.", len(states)),
            ("fleet_silent", "Devices that should report and do not.", silent),
            ("fleet_events_per_second", "Events that devices produce.", view.produced_per_s(now_s)),
            ("fleet_pending", "Events that wait in spools.", sum(s.pending for s in states)),
            ("fleet_dropped", "Events that devices have declared dropped, in their present epochs.",
             sum(sum(state.dropped.values()) for state in states)),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"tidewheel_{name}", text, value)

    def _rollout(self) -> Iterator[Metric]:
        """Yield the metrics of the decisions, and of the devices that refuse them."""
        leads = float(self._leading and self.alive)
        yield GaugeMetricFamily(f"{PREFIX}_leads", "1 while this controller leads.", leads)
        if self._last is None:
            return
        desired = self._last.standing
        offered = desired.offered
        began = self._stage_us / 1e6
        for name, text, value in (
            ("decision", "The number of the last decision.", self._last.seq),
            ("offered_share", "Share of the fleet that a version is offered to.", desired.share),
            ("stage", "Stage of the offered version; 0 if there is none.", desired.stage),
            (
                "stage_seconds",
                "Time since the stage began; 0 if no version is offered.",
                self._wall() - began if offered else 0.0,
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value)
        text = "Devices that refuse a decided version, by version."
        gauge = GaugeMetricFamily(f"{PREFIX}_devices_refusing", text, labels=["model"])
        for ref in (desired.stable, offered):
            if ref is not None:
                states = list(self.view.devices.values())
                gauge.add_metric([ref.model], sum(ref.model in s.refused for s in states))
        yield gauge


def not_after_s(path: Path) -> float | None:
    """Return the end of the first certificate in a PEM file, Unix time; None if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None
