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
        for name, text, value in (
            ("answers", "Events produced in this epoch.", state.produced),
            ("delivered", "Events that the broker has acknowledged.", state.delivered),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
        for name, text, counts in (
            ("dropped", "Events declared dropped.", state.dropped),
            ("skipped", "Readings and answers without an event.", state.skipped),
            ("irregular", "Readings that were odd, labels not used.", state.irregular),
        ):
            family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["reason"])
            yield _labelled(family, counts)
        labels = {
            "any": state.samples, "true": state.true_labels, "teacher": state.teacher_labels
        }  # fmt: skip
        text = "Stored segments, by the source of their label."
        yield _labelled(GaugeMetricFamily(f"{PREFIX}_samples", text, labels=["label"]), labels)
        quantiles = {"0.5": state.latency_p50_us / 1e6, "0.99": state.latency_p99_us / 1e6}
        text = "Latency of the last 1,000 answers."
        summary = Metric(f"{PREFIX}_answer_seconds", text, "summary")
        for quantile, seconds in quantiles.items():
            summary.add_sample(summary.name, {"quantile": quantile}, seconds)
        yield summary
        answers = state.challenger is not None and state.challenger.answers
        for name, text, value in (
            ("pending", "Events that wait in the spool.", state.pending),
            ("training", "1 while the trainer works.", state.phase == "training"),
            ("training_held_back", "1 if conditions prevented the last training.",
             state.held_back is not None),
            ("challenger_answers", "1 while an earlier version or the device's own copy answers.",
             answers),
            ("refused_models", "Versions that are not installed again.", len(state.refused)),
            ("spool_bytes", "Size of the spool's files.", _size(self._spool)),
            ("spool_limit_bytes", "Size at which events are dropped.", self._limit),
            ("connected", "1 while the uplink has a broker.", self._agent.connected),
            ("error", "1 while an error is being retried.", bool(state.error)),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


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
