"""A device's Prometheus metrics, computed from the agent's state on each request.

Loaded only with `--metrics-port`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from edge_client.agent import Agent

PREFIX = "tidewheel_edge"


class DeviceMetrics(Collector):
    """The metrics of one agent; `spool` is the folder of its spool, `limit` its cap in bytes."""

    def __init__(self, agent: "Agent", spool: Path, limit: int) -> None:
        self._agent, self._spool, self._limit = agent, spool, limit
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
            "The device, its task, its spool's epoch and its model versions.",
            {"device": state.device, "task": state.task, "epoch": state.epoch, **versions},
        )
        yield from _events(state)
        yield from _learning(state)
        quantiles = {"0.5": state.latency_p50_us / 1e6, "0.99": state.latency_p99_us / 1e6}
        name, text = f"{PREFIX}_answer_seconds", "Latency of the last 1,000 answers."
        yield _labelled(GaugeMetricFamily(name, text, labels=["quantile"]), quantiles)
        yield _gauge("spool_bytes", "Size of the spool's files.", _size(self._spool))
        yield _gauge("spool_limit_bytes", "Size at which events are dropped.", self._limit)
        yield _gauge("connected", "1 while the uplink has a broker.", self._agent.connected)
        yield _gauge("error", "1 while an error is being retried.", bool(state.error))


def _events(state: DeviceState) -> Iterator[Metric]:
    yield _counter("answers", "Events produced in this epoch.", state.produced)
    yield _counter("delivered", "Events that the broker has acknowledged.", state.delivered)
    yield _by_reason("dropped", "Events declared dropped.", state.dropped)
    yield _by_reason("skipped", "Readings and answers without an event.", state.skipped)
    yield _by_reason("irregular", "Readings that were odd, labels not used.", state.irregular)
    yield _gauge("pending", "Events that wait in the spool.", state.pending)


def _learning(state: DeviceState) -> Iterator[Metric]:
    counts = {"any": state.samples, "true": state.true_labels, "teacher": state.teacher_labels}
    text = "Stored segments, by the source of their label."
    yield _labelled(GaugeMetricFamily(f"{PREFIX}_samples", text, labels=["label"]), counts)
    training = state.phase == "training"
    yield _gauge("training", "1 while the trainer works.", training)
    held_back = state.held_back is not None
    yield _gauge("training_held_back", "1 if conditions prevented the last training.", held_back)
    answers = state.challenger is not None and state.challenger.answers
    text = "1 while an earlier version or the device's own copy answers."
    yield _gauge("challenger_answers", text, answers)
    yield _gauge("refused_models", "Versions that are not installed again.", len(state.refused))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


def _by_reason(name: str, text: str, counts: dict[str, int]) -> Metric:
    return _labelled(CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["reason"]), counts)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]
) -> Metric:
    for label, value in sorted(values.items()):
        family.add_metric([label], value)
    return family


def _size(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the spool has just deleted it
            size += path.stat().st_size
    return size
