"""Releases: `python -m benchmarks.release`.

spread    from an announced version to 50 devices that serve it: seconds and bytes
verdicts  how often a rollout of an equal or a worse version is misjudged, simulated
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.support.processes import running, tidewheel, until
from compose.launcher.state_dir import StateDir
from edge_client.ipc import ask, socket_path
from federation.bootstrap.dataset import segments_of_device, stack
from federation.bootstrap.initial_model import prepare
from federation.evaluation.quantization import renew_probe
from federation.registry.publisher import announce, read_announced
from federation.registry.registry import Registry
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, pack
from streams.contract.decisions import Ref
from streams.contract.documents import DeviceState
from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.contract.weights import payload
from streams.contract.weights.part import SUFFIX, Part
from streams.contract.work import AgentRequest
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.learning.factors import add_factors
from streams.learning.learning import build_model, fit, load_state, segment_loss
from streams.runtime.files import cache_folder
from streams.runtime.trust import create_key

TASK = "streams.tasks.har:task"
AT_ONCE = 4  # devices that start


@dataclass
class Server:
    """A registry that serves the first model, and versions that are fine-tuned of it."""

    state: Path
    reference: str = TASK

    def __post_init__(self) -> None:
        self.task = load_task(self.reference)
        self.key = create_key(self.state / "keys" / "signing.pem")
        keys = [self.key.public_key()]
        self.registry = Registry(self.state / "registry", self.task.name, self.task.version, keys)
        prepare(self.reference, self.task, self.registry, self.key, cache_folder())

    @property
    def serving(self) -> Artifact:
        found = self.registry.serving()
        assert found is not None
        return found

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        return payload.to_float32(safetensors.numpy.load(self.serving.files[WEIGHTS]))

    def part(self, **training: Any) -> Part:
        """Return what a round with other settings carries."""
        return Part(replace(self.task.training, **training), self.serving.model, self.first)

    def fine_tuned(self, seed: int, part: Part) -> dict[str, np.ndarray]:
        """Return a part of the first model, taught by the people of lab and pilot."""
        task, names = self.task, self.task.device_names("lab", "pilot")
        known = stack(task, [segments_of_device(task, name) for name in names])
        model = load_state(build_model(task), self.first)
        factors = {name: t for name, t in part.first.items() if name.endswith(SUFFIX)}
        add_factors(model, factors, part.base)
        fit(
            model, len(known.labels), segment_loss(task, model, known.segments, known.labels),
            epochs=2, batch_size=64, learning_rate=1e-3, seed=seed, optimizer="adamw",
            train_only=(*part.training.train_only, *factors),
        )  # fmt: skip
        state = model.eval().state_dict()
        return {name: state[name].numpy().copy() for name in part.first}

    def offer(self, number: int) -> Artifact:
        """Make a version as a run of the task makes it, and offer it to every device."""
        base, kind = self.serving, self.task.training.payload
        weights = self.fine_tuned(number, self.part())
        before = payload.to_float32(safetensors.numpy.load(base.files[WEIGHTS]))
        data = payload.to_safetensors(payload.round_candidate(weights, before, kind), kind)
        now = payload.to_float32(safetensors.numpy.load(data))
        probe = renew_probe(base.files, base.files[GRAPH], now)
        about = {"number": self.registry.next_number(), "base": base.model, "files": []}
        manifest = base.manifest.replace(**about, created_us=time.time_ns() // 1000)
        files = {**base.files, WEIGHTS: data, PROBE: probe}
        model = self.registry.add(pack(manifest, files, self.key))
        ref, last = Ref.of(model), self.registry.last()
        desired = self.registry.desired().replace(offered=ref, share=1.0)
        self.registry.decide(self.key, "stage", desired, last, model=ref.model, reason="bench")
        return model


def spread(bench: Bench) -> None:
    measure(bench, Server(bench.place("state")), bench.size(50, 6), 1.0)


def measure(bench: Bench, server: Server, count: int, within_s: float) -> None:
    """Offer versions to so many devices, and add the table and goals."""
    names = [f"phone-{i:02d}-person-{1 + i % 30:02d}" for i in range(count)]
    whole = len(safetensors.numpy.save(server.first))
    ensure_topics(bench.kafka, topic_specs(server.task.id, 4))
    rows: list[list[Cell]] = []
    seconds, shares = list[float](), list[float]()
    with closing(Producer(bench.kafka)) as producer:
        announce(producer, server.registry, None)
        with _devices(bench, server, names):
            last = server.registry.last()
            assert last is not None
            seq = last.decision.seq
            until("all devices follow", lambda: {s.release for s in _said(server, names)} == {seq})
            received = [state.received_bytes for state in _said(server, names)]
            for number in range(1, bench.size(3, 1) + 1):
                model = server.offer(number)
                told = read_announced(bench.kafka, server.task.id)
                with bench.quietly():
                    began = time.monotonic()
                    announce(producer, server.registry, told)
                    at = [one - began for one in _served(server, names, model.model)]
                now = [state.received_bytes for state in _said(server, names)]
                each = median(b - a for a, b in zip(received, now, strict=True))
                received = now
                took = [at[max(0, int(np.ceil(q * count)) - 1)] for q in (0.5, 0.95, 1.0)]
                rows.append([number, *took, each, each / whole])
                seconds.append(took[1])
                shares.append(each / whole)
                server.registry.serve(model.model, server.key, "bench")
                told = read_announced(bench.kafka, server.task.id)
                announce(producer, server.registry, told)
    text = (
        f"{count} processes `tidewheel edge run` at real time; each version is offered to all at "
        "once and comes as a delta of the one before. From before the decision is put on "
        f"`releases`. A plain float32 state dict has {whole:,} bytes."
    )
    columns = ["version", "50 % serve it, s", "95 %, s", "all, s", "bytes a device", "of the dict"]
    bench.table("From announced to served", columns, rows, text)
    bench.goal(f"announced to 95 % of {count} devices, s", Figure.of(seconds), at_most=within_s)
    bench.goal("bytes a device / plain float32 state dict", Figure.of(shares), at_most=0.25)


@contextmanager
def _devices(bench: Bench, server: Server, names: Sequence[str]) -> Iterator[None]:
    environ = {"TIDEWHEEL_KAFKA": bench.kafka.bootstrap}
    with ExitStack() as stack, ExitStack() as first:
        for i, name in enumerate(names):
            argv = tidewheel("edge", "run", server.reference, "--device", name, "--state",
                             str(server.state), "--speed", "1", "--drain", "1")  # fmt: skip
            log = server.state / "logs" / f"{name}.log"
            process = stack.enter_context(running(argv, log, environ))
            first.callback(process.terminate)  # all before any is waited for
            if i >= AT_ONCE:
                _served(server, names[: i - AT_ONCE + 1], None)
        _served(server, names, None)
        yield


def _served(server: Server, names: Sequence[str], model: str | None) -> list[float]:
    """Return when each device was first seen to serve `model`, or any, in order."""
    layout, found = StateDir(server.state), dict[str, float]()
    paths = {name: layout.device(name) / "slots" / "serving" for name in names}

    def all_serve() -> bool:
        for name in names:
            if name not in found and paths[name].exists():
                said = paths[name].read_text()
                if said == model or (model is None and said):
                    found[name] = time.monotonic()
        return len(found) == len(names)

    until(f"all devices serve {model}", all_serve, 120, pause_s=0.02)
    return sorted(found.values())


def _said(server: Server, names: Sequence[str]) -> list[DeviceState]:
    """Return what the devices' agents say of themselves."""
    sockets = [socket_path(StateDir(server.state).device(name)) for name in names]
    found = [ask(socket, AgentRequest(op="state")).state for socket in sockets]
    return [state for state in found if state is not None]


if __name__ == "__main__":
    main("release", {"spread": spread}, ("onnxruntime", "torch"))
