"""What a device's agent tells Prometheus, made of its state when it is asked: nothing is counted
for it beside the answers. Loaded where `--metrics-port` is given only."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from streams.contract.documents import DeviceState

PREFIX = "tidewheel_edge"


class Watched(Protocol):
    """An agent, as it is asked by the server's threads."""

    @property
    def connected(self) -> bool:
        """Whether the uplink has a broker."""
        ...

    @property
    def ready(self) -> bool:
        """Whether there is a model to answer with, and no end in sight."""
        ...

    @property
    def alive(self) -> bool:
        """Whether its own upkeep goes on."""
        ...

    def state(self) -> DeviceState: ...


class DeviceMetrics(Collector):
    """The numbers of one agent, whose spool lies in a folder."""

    def __init__(self, agent: Watched, spool: Path) -> None:
        self._agent, self._spool = agent, spool
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def ready(self) -> bool:
        return self._agent.ready

    @property
    def alive(self) -> bool:
        return self._agent.alive

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        state = self._agent.state()
        versions = {"active": state.active, "previous": state.previous or ""}
        yield InfoMetricFamily(
            PREFIX,
            "The device, its task, its spool's epoch, and the versions that it has.",
            {"device": state.device, "task": state.task, "epoch": state.epoch, **versions},
        )
        yield from _events(state)
        yield from _learning(state)
        seconds = GaugeMetricFamily(
            f"{PREFIX}_answer_seconds", "Of the latest 1,000 answers.", labels=["quantile"]
        )
        seconds.add_metric(["0.5"], state.latency_p50_us / 1e6)
        seconds.add_metric(["0.99"], state.latency_p99_us / 1e6)
        yield seconds
        yield _gauge("spool_bytes", "Files of the spool.", _size(self._spool))
        yield _gauge("connected", "1 while the uplink has a broker.", self._agent.connected)
        yield _gauge("error", "1 while something is wrong that is tried again.", bool(state.error))


def _events(state: DeviceState) -> Iterator[Metric]:
    yield _counter("answers", "Events produced in this epoch.", state.produced)
    yield _counter("delivered", "Events that the broker has.", state.delivered)
    yield _by_reason("dropped", "Events declared dropped.", state.dropped)
    yield _by_reason("skipped", "Readings and answers that made no event.", state.skipped)
    yield _gauge("pending", "Events that wait in the spool.", state.pending)


def _learning(state: DeviceState) -> Iterator[Metric]:
    samples = GaugeMetricFamily(
        f"{PREFIX}_samples", "Segments remembered, by whose label they have.", labels=["label"]
    )
    samples.add_metric(["any"], state.samples)
    samples.add_metric(["true"], state.true_labels)
    samples.add_metric(["teacher"], state.teacher_labels)
    yield samples
    training = state.phase == "training"
    yield _gauge("training", "1 while the trainer works.", training)
    held_back = state.held_back is not None
    yield _gauge("training_held_back", "1 where the last training was not to be.", held_back)
    personal = state.personal is not None and state.personal.serving
    yield _gauge("personal_copy_answers", "1 while a copy of the device's own answers.", personal)
    yield _gauge("refused_models", "Versions that are not installed again.", len(state.refused))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


def _by_reason(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["reason"])
    for reason, count in sorted(counts.items()):
        family.add_metric([reason], count)
    return family


def _size(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the spool has just deleted it
            size += path.stat().st_size
    return size
