"""The trace of a run: rounds and gate as its children, devices' work as theirs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.training.fit_span import traced
from federation.admission.update import Tensors
from federation.registry.registry import Registry
from federation.rounds.run_spans import run_span
from streams.contract.events.messages import Headers
from streams.contract.events.traceparent import read_traceparent, run_trace, traceparent_of
from streams.contract.task import Task
from streams.contract.topics import ROUNDS
from streams.contract.work import Op, Work, WorkReply, WorkRequest
from tests.fakes.recorded_spans import recording
from tests.federation.rounds.test_run import FakeFleet, FakeKafka, Rig, sound


@dataclass
class WorkKept(FakeFleet):
    works: list[tuple[Op, Work]] = field(default_factory=list)

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        self.works.append((op, work))
        super().send(op, nodes, work, weights, ttl_s)


@dataclass
class HeadersKept(FakeKafka):
    def __init__(self) -> None:
        super().__init__()
        self.headers: list[Headers | None] = []

    def put(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        if topic.endswith(ROUNDS):
            self.headers.append(headers)
        return super().put(topic, key, value, headers, timeout_s)


@pytest.fixture
def rig(tiny: Task, registry: Registry, key: Ed25519PrivateKey, tmp_path: Path) -> Rig:
    registry.store.remove("heldout.safetensors")
    return Rig(tiny, registry, key, tmp_path / "runs", HeadersKept())


def test_a_run_is_one_trace_of_rounds_and_gate(rig: Rig) -> None:
    recorded, tracing = recording(share=0.0)  # of messages: runs are always traced
    fleet = WorkKept([sound("a", 0.01), sound("b", 0.02)])
    run = replace(rig.run(fleet), tracing=tracing)
    assert run.run().promote
    (whole,) = recorded.named("run")
    assert whole.at == run_span("tiny", "7")
    assert whole.at.trace == run_trace("tiny", "7")
    assert whole.attributes == {"tidewheel.run": "7", "tidewheel.outcome": "promoted"}
    rounds, gate = recorded.named("run.round"), recorded.named("run.gate")
    assert [span.attributes["tidewheel.round"] for span in rounds] == [1, 2]
    assert [span.parent for span in rounds + gate] == [whole.at] * 3
    assert [read_traceparent(work.traceparent.encode()) for _, work in fleet.works] == [
        span.at for span in rounds + gate
    ]
    assert isinstance(rig.kafka, HeadersKept)
    told = [traceparent_of(headers or []) for headers in rig.kafka.headers]
    spans = {span.at for span in recorded.spans}
    assert None not in told
    assert set(told) == spans
    assert recorded.closed == 1


def test_without_tracing_neither_work_nor_rounds_name_a_trace(rig: Rig) -> None:
    fleet = WorkKept([sound("a", 0.01), sound("b", 0.02)])
    rig.run(fleet).run()
    assert {work.traceparent for _, work in fleet.works} == {""}
    assert isinstance(rig.kafka, HeadersKept)
    assert [headers for headers in rig.kafka.headers if headers] == []


def test_a_run_that_fails_says_so_in_its_span(rig: Rig) -> None:
    recorded, tracing = recording()
    run = replace(rig.run(FakeFleet([]), node_wait_s=5.0), tracing=tracing)
    with pytest.raises(Exception, match="0 devices are online"):
        run.run()
    (whole,), (first,) = recorded.named("run"), recorded.named("run.round")
    assert whole.error.startswith("failed: 0 devices are online")
    assert first.error == "ProcessFailed"


def request(traceparent: str, op: Op = "train") -> WorkRequest:
    return WorkRequest(
        run="7", round=1, task="tiny", task_version=1, base="1-a", epochs=1, batch_size=32,
        learning_rate=0.02, traceparent=traceparent, op=op,
    )  # fmt: skip


@pytest.mark.parametrize(("op", "name"), [("train", "device.fit"), ("evaluate", "device.evaluate")])
def test_a_devices_work_is_a_child_of_its_round(op: Op, name: str) -> None:
    recorded, tracing = recording()
    parent = run_span("tiny", "7").child("run.round", 1)
    reply = WorkReply(device="d0", samples=640)
    work = traced(tracing, "d0", lambda _request, body: (reply, body))
    assert work(request(parent.text, op), b"x") == (reply, b"x")
    (span,) = recorded.spans
    assert (span.name, span.parent, span.error) == (name, parent, "")
    assert span.at == parent.child(name, "d0")
    assert span.attributes["tidewheel.samples"] == 640


@pytest.mark.parametrize("text", ["", "garbage", "\ud800", "00-" + "0" * 32 + "-" + "1" * 16])
def test_work_that_names_no_span_is_done_without_one(text: str) -> None:
    recorded, tracing = recording()
    reply = WorkReply(device="d0")
    asked = request("").model_copy(update={"traceparent": text})
    assert traced(tracing, "d0", lambda _request, body: (reply, body))(asked, b"") == (reply, b"")
    assert recorded.spans == []
    work = lambda _request, body: (reply, body)  # noqa: E731
    assert traced(None, "d0", work) is work
