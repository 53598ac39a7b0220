"""Promise 5: a device answers as promptly while it trains, evaluates and installs. A real agent
and its trainer; when each answer was given, and by which version, is written down in the agent's
loop.

What is compared are the pauses between answers: the longest one, and quantiles of all.
"""

import re
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from edge_client.ipc import ask, call, socket_path
from federation.bootstrap.onnx_export import export_graph
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.errors import Retryable
from streams.contract.topics import topic_specs
from streams.contract.weights import payload
from streams.contract.work import AgentRequest, Op, WorkReply
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.learning.learning import predict
from tests.edge_client.test_rollback import Place, ends, place
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.models import artifact, plain, segments
from tests.rig.processes.polling import until

__all__ = ["place"]

SPEED, A_SECOND = 50, 100  # segments a second
IDLE_S, LABELS, WAIT_S = 3.0, 64, 90.0
TRAINED_S = 4.0  # at least: many pauses fit into it
EVALUATED_S = 2.0
SHARE = 0.25  # of a training: as long a silence is none of the processor's, but of the loop
QUANTILES = (0.5, 0.9, 0.95, 0.99)
WIDE, LEAST_S = 8.0, 0.05  # so many times as long as when idle, or as this, is another pause
VERSIONS = 3  # that are installed one after the other
PROBES = 4_000  # segments that each of them answers in its self-test: seconds

# argv: a folder for the files `answers` (when, and by which version) and `installs` (from when to
# when); the words of `tidewheel`.
PROGRAM = """
import sys, time
from edge_client.inference.loop import InferenceLoop
from edge_client.downlink import Downlink
from compose.cli.main import main

answers, installs = (open(f"{sys.argv[1]}/{x}", "a", buffering=1) for x in ("answers", "installs"))
answer, serve = InferenceLoop.answer, Downlink._serve

def timed(self, cut):
    model = self.slots.engine.model
    answer(self, cut)
    answers.write(f"{time.monotonic()} {model}\\n")

def install(*given):
    began = time.monotonic()
    serve(*given)
    installs.write(f"{began} {time.monotonic()}\\n")

InferenceLoop.answer, Downlink._serve = timed, install
sys.argv = ["tidewheel", *sys.argv[2:]]
sys.exit(main())
"""

LARGE = """
from dataclasses import replace
from tests.rig.made_up.tiny_task import task as tiny

def build_model():
    from torch import nn
    return nn.Sequential(
        nn.Flatten(), nn.Linear(40, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 3),
    )

task = replace(tiny, name={name!r}, build_model=build_model, latency_budget_ms=60_000)
"""


Span = tuple[float, float]  # from when to when, in seconds of the monotonic clock


@dataclass(frozen=True)
class Period:
    """Parts of an agent's life, and when it gave all its answers."""

    spans: tuple[Span, ...]
    times: np.ndarray

    @property
    def took(self) -> float:
        return sum(ended - began for began, ended in self.spans)

    def _within(self, span: Span) -> np.ndarray:
        return self.times[(self.times > span[0]) & (self.times < span[1])]

    @property
    def answers(self) -> int:
        return sum(len(self._within(span)) for span in self.spans)

    @property
    def pauses(self) -> np.ndarray:
        parts = [[span[0], *self._within(span), span[1]] for span in self.spans]
        return np.concatenate([np.diff(part) for part in parts])

    @property
    def longest(self) -> float:
        return float(self.pauses.max())

    def longer_than(self, idle: "Period") -> dict[float, tuple[float, float]]:
        """The quantiles by which these pauses are others than the `idle` ones: both, in seconds."""
        found = zip(*(np.quantile(each.pauses, QUANTILES) for each in (self, idle)), strict=True)
        return {
            quantile: (float(busy), float(quiet))
            for quantile, (busy, quiet) in zip(QUANTILES, found, strict=True)
            if busy > WIDE * max(quiet, LEAST_S)
        }


def start(place: Place, *words: str) -> subprocess.Popen[bytes]:
    program = ("-c", PROGRAM, str(place.state))
    return place.start("--speed", str(SPEED), *words, program=program, OMP_NUM_THREADS="1")


def written(place: Place, name: str) -> list[list[str]]:
    """The words of the complete lines of a file of the agent's."""
    path = place.state / name
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line.split() for line in lines]


def models(place: Place) -> list[str]:
    """The versions that have answered, in their order."""
    return list(dict.fromkeys(model for _, model in written(place, "answers")))


def period(place: Place, *spans: Span) -> Period:
    return Period(spans, np.array([float(at) for at, _ in written(place, "answers")]))


def idle() -> Span:
    """A span in which nothing else goes on."""
    began = time.monotonic()
    while time.monotonic() < began + IDLE_S:
        time.sleep(0.05)  # the time itself is what is waited for
    return began, time.monotonic()


def known_labels(at: Path) -> int:
    try:
        state = ask(at, AgentRequest(op="state")).state
    except Retryable:
        return 0
    return state.true_labels if state is not None else 0


def work(at: Path, op: Op, base: str, **fields: Any) -> WorkReply:
    """What a device's ClientApp asks in a round."""
    weights = {name: tensor.numpy() for name, tensor in plain(2).state_dict().items()}
    request = work_request(op, base=base, learning_rate=0.001, node=1, **fields)
    reply, _ = call(at, request, payload.encode_weights(weights, "float32"), WAIT_S)
    assert reply.error is None
    return reply


def trained(at: Path, base: str) -> Span:
    """The span of a training that its time budget ends."""
    began = time.monotonic()
    work(at, "train", base, epochs=100_000, time_budget_s=TRAINED_S)
    return began, time.monotonic()


def evaluated(at: Path, base: str) -> Span:
    """The span of evaluations, one after the other: one takes milliseconds."""
    began = time.monotonic()
    while time.monotonic() < began + EVALUATED_S:
        reply = work(at, "evaluate", base)
        assert reply.samples > 0
        assert "base_correct" in reply.metrics  # beside the served version, which the agent reads
    return began, time.monotonic()


@pytest.mark.timeout(720)
def test_a_round_does_not_keep_answers_waiting(place: Place) -> None:
    base = str(place.install(1).active)
    agent = start(place)
    at = socket_path(place.state / "devices" / "d0")

    def labelled() -> bool:
        assert agent.poll() is None, place.log
        return known_labels(at) >= LABELS

    until(labelled, "it has labels to train on", WAIT_S)
    work(at, "train", base)  # the child has loaded torch from here on
    spans = idle(), trained(at, base), evaluated(at, base)
    assert ends(agent) == 0
    quiet, training, evaluations = (period(place, span) for span in spans)
    assert training.took > TRAINED_S
    most = SHARE * training.took
    assert quiet.longest < most
    for busy in (training, evaluations):
        assert busy.longest < most
        assert busy.answers > 0.2 * A_SECOND * busy.took
        assert not busy.longer_than(quiet)


def large_versions(place: Place) -> list[bytes]:
    """The `place` gets a task of its own, whose model has a million weights; its versions, the
    first one and those that take long to install."""
    path = place.state / "large_task.py"
    path.write_text(LARGE.format(name=f"large-{uuid.uuid4().hex[:8]}"))
    place.reference = f"{path}:task"
    task, versions = place.task, []
    for number in range(1, VERSIONS + 2):
        torch.manual_seed(number)
        model, probe = task.build_model().eval(), None
        if number == 1:
            place.graph = export_graph(task, model)
        else:
            inputs = segments(PROBES)
            probe = safetensors.numpy.save({"inputs": inputs, "outputs": predict(model, inputs)})
        versions.append(
            artifact(place.key, model, number, graph=place.graph, task=task, probe=probe)
        )
    return versions


@pytest.mark.kafka
@pytest.mark.timeout(720)
def test_installs_do_not_keep_answers_waiting(place: Place, kafka: BrokerSettings) -> None:
    versions = large_versions(place)
    (place.state / "first.twa").write_bytes(versions[0])
    task, place.kafka = place.task, kafka.bootstrap
    ensure_topics(kafka, topic_specs(task.id))
    registry = Registry(place.state / "registry", task.name, task.version, [place.key.public_key()])
    first, *others = [registry.add(data).model for data in versions]
    producer, announced = Producer(kafka), None

    def tell(model: str) -> None:
        nonlocal announced
        registry.serve(model, place.key, "a test")
        announced = publisher.announce(producer, registry, announced)

    tell(first)
    agent = start(place, "--model", str(place.state / "first.twa"))
    until(lambda: models(place) == [first], "the first version answers", WAIT_S)
    nothing_else = idle()
    for model in others:
        tell(model)
        until(lambda model=model: model in models(place), f"{model} answers", WAIT_S)  # type: ignore[misc]
    producer.close()
    assert ends(agent) == 0
    quiet = period(place, nothing_else)
    installs = period(place, *((float(a), float(b)) for a, b in written(place, "installs")))
    assert len(installs.spans) == VERSIONS
    assert models(place) == [first, *others]
    assert re.findall(r"serving (\S+), was", place.log) == others
    assert place.found()["active"] == others[-1]
    assert quiet.longest < SHARE * TRAINED_S
    assert installs.longest < SHARE * TRAINED_S
    assert installs.answers > 0.2 * A_SECOND * installs.took
    assert not installs.longer_than(quiet)
