"""Releases: `python -m benchmarks.release`.

From an announced version to 50 devices that serve it: seconds and bytes.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from statistics import median

import numpy as np
import safetensors.numpy

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.support.processes import running, tidewheel, until
from benchmarks.support.server import Server
from compose.launcher.state_dir import StateDir
from edge_client.ipc import ask, socket_path
from federation.registry.publisher import announce, read_announced
from streams.contract.documents import DeviceState
from streams.contract.topics import topic_specs
from streams.contract.work import AgentRequest
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer

AT_ONCE = 4  # devices that start


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
