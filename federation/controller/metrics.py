"""The controller's Prometheus metrics, from its view of the fleet. Loaded only with
`--metrics-port`."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from streams.fleet.view import FleetView

PREFIX = "tidewheel_federation"
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
    up to the topics' end, which the controller's thread changes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        certificates: Sequence[Path] = (),
    ) -> None:
        self._certificates = certificates
        self._clock, self._wall = clock, wall
        self._looked = -SILENT_S
        self._leading = False
        self.view = FleetView("")
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def looked(self, *, leading: bool) -> None:
        """Record that the controller has read its topics, or checked whether it leads."""
        self._looked, self._leading = self._clock(), leading

    @property
    def ready(self) -> bool:
        return self.alive

    @property
    def alive(self) -> bool:
        return self._clock() - self._looked < SILENT_S

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._learning()
        yield from self._rollout()
        yield from self._fleet()
        name, text = (
            "tidewheel_certificate_not_after_seconds",
            "When a certificate ends, Unix time.",
        )
        ends = GaugeMetricFamily(name, text, labels=["file"])
        for path in dict.fromkeys(self._certificates):  # Kafka's two may be one file
            if (end := not_after_s(path)) is not None:
                ends.add_metric([str(path)], end)
        yield ends

    def _learning(self) -> Iterator[Metric]:
        """Yield the metrics of decisions, runs and rounds."""
        counts = {
            name: CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
            for name, text, labels in (
                ("decisions", "Decisions, by kind.", ["kind"]),
                ("runs", "Runs that have finished.", ["outcome"]),
                ("rounds", "Rounds, by outcome.", ["outcome"]),
                ("updates", "Updates of devices: admitted; refused, with the reason; failed.",
                 ["outcome", "reason"]),
            )
        }  # fmt: skip
        for name, count in self.view.counts.copy().items():
            kind, _, more = name.partition(":")
            if kind in ("decision", "finished"):
                counts["runs" if kind == "finished" else "decisions"].add_metric([more], count)
            elif name in ("aggregated:", "failed:"):
                counts["rounds"].add_metric([kind], count)
            elif kind in ("admitted", "refused", "failed"):
                counts["updates"].add_metric([kind, more if kind == "refused" else ""], count)
        yield from counts.values()
        events = [event for event in list(self.view.rounds) if event.kind != "requested"]
        over = {event.run for event in events if event.kind == "finished"}
        going = len({event.run for event in events if event.run} - over)
        yield GaugeMetricFamily(f"{PREFIX}_runs_going", "Runs that have not finished.", going)
        told = (event.metrics for event in events if event.kind in ("aggregated", "evaluated"))
        last = {name: value for metrics in told for name, value in metrics.items()}
        for name, text in LAST.items():
            if name in last:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, last[name])

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
        decided = self.view.decided
        if not decided:
            return
        desired = decided[-1].standing
        offered = desired.offered
        began = next((d.time_us / 1e6 for d in decided[::-1] if d.kind == "stage"), 0.0)
        for name, text, value in (
            ("decision", "The number of the last decision.", decided[-1].seq),
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
