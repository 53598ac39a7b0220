"""A device: `python -m benchmarks.device`. Every process that it needs counts.

    memory     an idle device in its installed form, then one in a round; seconds to an answer
    installed  what `pip install tidewheel[edge]` brings
    cpu        of an event at 23 and at 1 a second
    wire       bytes of an event on the topic
    sustained  events a second through recorder, spool and uplink, beside a bare producer
    answers    beside bare calls of onnxruntime, idle and while it trains
    up         memory and processes of six devices under `tidewheel up`

Devices run in virtualenvs that hold what the extra brings and nothing else. The model is HAR's with
random weights, the readings are made up.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.frame import MB, Bench, Cell, Figure, main
from benchmarks.support.device_tasks import DEVICE, HOP_S, RATES, TASKS
from benchmarks.support.devices import Device, device, edge_run, site, state, words
from benchmarks.support.processes import (
    Usage,
    family,
    module,
    running,
    topic_bytes,
    until,
    usage,
)
from compose.launcher import flower_processes
from compose.launcher.broker import free_ports
from edge_client.ipc import ask
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.invitations import Invitation, sign_invitation
from streams.contract.task import load_task
from streams.contract.topics import EVENTS, INVITATIONS, topic_name
from streams.contract.work import AgentRequest
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, partition_of
from streams.runtime.trust import load_private_key
from tests.rig.processes.distributions import needed

RING = 2048  # samples that a device keeps
FAST = 500  # segments a second: the ring is soon full
HEAVY = {"torch", "faust-streaming", "flwr", "pyarrow"}


def memory(bench: Bench) -> None:
    starts = []
    for _ in range(bench.size(5, 1)):
        with bench.quietly(), edge_run(bench, "edge", "predictions", 1.0) as one:
            starts.append(one.first_s)
    with edge_run(bench, "edge", "predictions", FAST) as one:
        until("a full ring of samples", lambda: one.samples() == RING)
        ask(one.socket, AgentRequest(op="pace", speed=HOP_S))
        time.sleep(bench.size(20.0, 3.0))  # what is measured is a device at rest
        idle = _memory("idle, [edge]", [process.pid for process in family(one.pid)])
    with edge_run(bench, "edge-train", "predictions", FAST) as one, _invited(bench, one):
        until("a full ring of samples", lambda: one.samples() == RING)
        one.train(TASKS["predictions"], _weights(one))
        (trainer,) = one.children("edge_client.training")
        agent = _memory("in a round, [edge-train]: agent", [one.pid])
        node = _memory("its SuperNode", one.children("supernode"))
        both = _memory("both", [one.pid, *one.children("supernode")])
        rows = [idle, agent, node, both, _memory("its trainer", [trainer])]
    text = (
        f"`tidewheel edge run` with a full ring of {RING:,} samples at one event a second and a "
        "broker; all processes of the device. In a round it was invited, its SuperNode has joined "
        "a SuperLink, and it has trained."
    )
    bench.table("Memory", ["", "processes", "RSS MB", "PSS MB"], rows, text)
    bench.goal("idle device, all processes, PSS, MB", float(str(idle[3])), at_most=75)
    bench.goal("idle device, all processes, RSS, MB", float(str(idle[2])), at_most=95)
    bench.goal("in a round, beside its trainer, PSS, MB", float(str(both[3])), at_most=170)
    bench.goal("start to first answer, s", Figure.of(starts), at_most=0.35)


def _memory(name: str, pids: Sequence[int]) -> list[Cell]:
    found = [usage(pid) for pid in pids]
    return [name, len(pids), sum(u.rss for u in found) / MB, sum(u.pss for u in found) / MB]


def _weights(one: Device) -> bytes:
    return (one.folder.parents[1] / "model.safetensors").read_bytes()


@contextmanager
def _invited(bench: Bench, one: Device) -> Iterator[None]:
    """A SuperLink that the device has joined, for a run that asks nothing of it."""
    task, folder = load_task(TASKS["predictions"]), bench.place("superlink")
    folder.mkdir()
    [port] = free_ports(1)
    launch = flower_processes.superlink(folder, port)
    with running(launch.argv, folder / "superlink.log", launch.env):
        until(
            "the SuperLink answers",
            lambda: flower_processes.is_ready(f"{flower_processes.HOST}:{port}"),
        )
        key = load_private_key(one.folder.parents[1] / "signing.pem")
        invitation = Invitation(
            task=task.name, task_version=task.version, run="1", devices=[DEVICE],
            superlink=f"{flower_processes.HOST}:{port}", issued_us=time.time_ns() // 1000,
            lease_s=600,
        )  # fmt: skip
        producer, topic = Producer(bench.kafka), topic_name(task.id, INVITATIONS)
        producer.put(topic, b"1", sign_invitation(invitation, key).encode())
        producer.close()

        def joined() -> bool:
            found = one.said()
            return found is not None and found.node is not None

        until("the device has joined", joined)
        yield


def installed(bench: Bench) -> None:
    rows: list[list[Cell]] = []
    for extra in ("edge", "edge-train"):
        sizes = {
            name: sum(
                path.stat().st_size
                for path in (Path(str(found.locate_file(one))) for one in found.files or [])
                if path.suffix != ".pyc" and path.is_file()
            )
            for name, found in needed(extra).items()
        }
        total, heavy = sum(sizes.values()) / MB, HEAVY & sizes.keys()
        largest = sorted(sizes.items(), key=lambda one: -one[1])[:5]
        told = ", ".join(f"{name} {size / MB:.0f}" for name, size in largest)
        rows.append([f"tidewheel[{extra}]", len(sizes), total, told])
        if extra == "edge":
            bench.goal("tidewheel[edge] installed, MB", total, at_most=190)
            bench.goal(f"of {', '.join(sorted(HEAVY))} in [edge]", len(heavy), at_most=0)
    columns = ["", "distributions", "MB", "largest, MB"]
    text = "Files of all distributions as pip installs them, without tidewheel's own and without "
    bench.table("Installed", columns, rows, f"{text}what Python compiles.")


def cpu(bench: Bench) -> None:
    seconds, rows = bench.size(60.0, 8.0), list[list[Cell]]()
    for rate, most in ((23.0, 1.5), (1.0, 5.0)):
        with bench.quietly(), edge_run(bench, "edge", "segments", rate) as one:
            time.sleep(bench.size(10.0, 3.0))
            before, cpu_s, began = _produced(one), one.cpu_s(), time.monotonic()
            time.sleep(seconds)
            events, spent = _produced(one) - before, one.cpu_s() - cpu_s
            share = spent / (time.monotonic() - began)
        each = 1000 * spent / max(events, 1)
        rows.append([f"{rate:g} a second", events, each, 100 * share])
        bench.goal(f"CPU of an event at {rate:g} a second, ms", each, at_most=most)
    bench.goal("all processes at 1 a second, % of a core", 100 * share)
    text = f"`tidewheel edge run`, all processes, for {seconds:.0f} s; segments are sent."
    bench.table("CPU", ["", "events", "ms an event", "% of a core"], rows, text)


def _produced(one: Device) -> int:
    found = one.said()
    assert found is not None
    return found.produced


def wire(bench: Bench) -> None:
    """A partition for each rate; the broker stores what it gets, compressed as it was sent."""
    rows: list[list[Cell]] = []
    names = [next(n for n in map(str, range(99)) if partition_of(n, len(RATES)) == at)
             for at in range(len(RATES))]  # fmt: skip
    for upload in ("segments", "predictions"):
        task = load_task(TASKS[upload])
        topic = topic_name(task.id, EVENTS)
        before = _sizes(bench, topic, upload)
        with contextlib.ExitStack() as stack:
            for name, rate in zip(names, RATES.values(), strict=True):
                stack.enter_context(edge_run(bench, "edge", upload, rate, name))
            time.sleep(bench.size(30.0, 6.0))
        reader, counts = Reader(bench.kafka, [topic]), dict.fromkeys(names, (0, 0))
        for message in reader.read_to_end():
            found = decode_event_message(task, message.key, message.value, message.headers)
            if isinstance(found, EventBatch) and found.device in counts:
                events, messages = counts[found.device]
                counts[found.device] = events + found.rows.num_rows, messages + 1
        reader.close()
        after = _sizes(bench, topic, upload)
        for at, (title, name) in enumerate(zip(RATES, names, strict=True)):
            events, messages = counts[name]
            size = (after[at] - before.get(at, 0)) / events
            rows.append([f"{upload}, {title}", events, events / messages, size])
            most = {"one a message": 150, "50 a second": 40}[title]
            bench.goal(
                f"bytes of one of {upload}, {title}", size,
                at_most=most if upload == "predictions" else None,
            )  # fmt: skip
    columns = ["", "events", "events a message", "bytes an event"]
    bench.table("Bytes of an event on the topic", columns, rows)


def _sizes(bench: Bench, topic: str, upload: str) -> dict[int, int]:
    """Return the bytes that the broker stores of each partition."""
    state(bench, upload)
    return {at: size for (name, at), size in topic_bytes(bench.kafka).items() if name == topic}


def sustained(bench: Bench) -> None:
    rows: list[list[Cell]] = []
    for upload, count in (("segments", 150_000), ("predictions", 500_000)):
        state(bench, upload)
        events = bench.size(count, count // 5)
        argv = ["pump", TASKS[upload], bench.kafka.bootstrap, str(events)]
        runs = []
        for _ in range(bench.size(3, 1)):
            with bench.quietly():
                python = site(bench, "edge")
                runs.append(module("benchmarks.support.device_process", *argv, python=python))
        ours, bare = ([run[name] for run in runs] for name in ("device_s", "bare_s"))
        share = Figure.ratio(bare, ours)
        for name, seconds, ratio in (("the device", ours, share), ("a bare producer", bare, 1.0)):
            speed = Figure.of([events / one for one in seconds])
            rows.append([f"{upload}, {name}", speed, ratio, runs[-1]["messages"]])
        least = {"segments": 0.80, "predictions": 0.75}[upload]
        bench.goal(f"events/s beside a bare producer, {upload}", share, at_least=least)
    columns = ["", "events/s", "of the bare", "messages"]
    text = (
        "The same messages with the same options, in one process one after the other; the device's "
        "without the last 2,048 events, which wait for others."
    )
    bench.table("Sustained", columns, rows, text)


def answers(bench: Bench) -> None:
    rows: list[list[Cell]] = []
    for rate in (50.0, 800.0):
        folder = state(bench, "segments")
        python, out = site(bench, "edge-train"), folder / "timed.npy"
        argv = [str(python), "-m", "benchmarks.support.device_process", "answers", str(out)]
        argv += [str(folder / "model.onnx"), *words(bench, folder, "segments", rate)]
        spans = {}
        with bench.quietly(), device(argv, folder) as one:
            time.sleep(2.0)
            began = time.monotonic()
            time.sleep(bench.size(20.0, 4.0))
            spans["idle"] = began, time.monotonic()
            ask(one.socket, AgentRequest(op="state"))
            one.train(TASKS["segments"], _weights(one))  # starts the trainer
            began = time.monotonic()
            while time.monotonic() < began + bench.size(15.0, 3.0):
                one.train(TASKS["segments"], _weights(one))
            spans["fine-tuning"] = began, time.monotonic()
        timed = np.load(out)
        for what, (begin, end) in spans.items():
            inside = timed[(timed[:, 0] >= begin) & (timed[:, 0] < end)]
            ours, bare = (1e6 * inside[inside[:, 1] == kind, 2] for kind in (0, 1))
            shares = [float(np.quantile(times, q)) for times in (ours, bare) for q in QUANTILES]
            rows.append([f"{rate:g} a second, {what}", len(ours), *shares, shares[0] / shares[3]])
            bench.goal(
                f"answer to bare call, p50, {rate:g} a second, {what}", shares[0] / shares[3],
                at_most=1.5 if what == "idle" else None,
            )  # fmt: skip
    columns = ["", "answers", "p50 µs", "p90", "p99", "bare p50", "p90", "p99", "p50 to bare"]
    bench.table("Answers", columns, rows)


QUANTILES = (0.5, 0.9, 0.99)


def up(bench: Bench) -> None:
    folder, devices = bench.place("up"), bench.size(6, 2)
    folder.mkdir()
    argv = [str(site(bench, "all").parent / "tidewheel"), "up", TASKS["quiet"]]
    argv += ["--devices", str(devices), "--state", str(folder / "state"), "--timeout", "600"]
    log = folder / "up.log"
    environ = {
        "PYTHONPATH": "",
        "TIDEWHEEL_KAFKA": "",
        "KAFKA_HOME": os.environ.get("KAFKA_HOME", ""),
    }
    with running(argv, log, environ, wait_s=60.0) as process:

        def learning() -> bool:
            return bool(_used(process.pid, "serverapp") or _used(process.pid, "supernode"))

        def serve() -> bool:
            return len(list((folder / "state" / "devices").glob("*/slots/serving"))) == devices

        until("all devices answer", serve, 300, process, log)
        seconds = bench.size(60.0, 10.0)
        deadline, quiet_since = time.monotonic() + 300, time.monotonic()
        while time.monotonic() < quiet_since + seconds / 2 and time.monotonic() < deadline:
            quiet_since = time.monotonic() if learning() else quiet_since
            time.sleep(1.0)
        before, began = _family_cpu_s(process.pid), time.monotonic()
        time.sleep(seconds)
        cores = (_family_cpu_s(process.pid) - before) / (time.monotonic() - began)
        found, agents = _used(process.pid), _used(process.pid, "edge run")
        load, busy = os.getloadavg()[0], learning()
    gb = sum(one.pss for one in found) / 1e9
    row: list[Cell] = [devices, len(found), gb, sum(one.rss for one in found) / 1e9, cores]
    columns = ["devices", "processes", "PSS GB", "RSS GB", "cores"]
    text = f"All processes of `up`, installed as tidewheel[all], {seconds:.0f} s"
    text += ", while a run learned" if busy else ""
    bench.table("Under up, while nothing is learned", columns, [row], f"{text}.")
    bench.goal(f"processes of {devices} devices under up", len(found), at_most=14)
    bench.goal("memory in all, PSS, GB", gb, at_most=1.3)
    bench.goal("load average of a minute, while nothing is learned", load, at_most=1.0)
    pss, rss = (sum(getattr(one, kind) for one in agents) / MB / devices for kind in ("pss", "rss"))
    bench.goal("idle device of them, all processes, PSS, MB", pss, at_most=75)
    bench.goal("idle device of them, all processes, RSS, MB", rss, at_most=95)


def _family_cpu_s(pid: int) -> float:
    return sum(one.cpu_s for one in _used(pid))


def _used(pid: int, words: str = "") -> list[Usage]:
    """What the processes of a family use whose command has `words`; some may end meanwhile."""
    found = []
    for one in family(pid):
        with contextlib.suppress(psutil.Error, OSError):
            if words in " ".join(one.cmdline()):
                found.append(usage(one.pid))
    return found


if __name__ == "__main__":
    main(
        "device",
        {f.__name__: f for f in (memory, installed, cpu, wire, sustained, answers, up)},
        ("onnxruntime", "numpy", "kafka-python", "msgspec"),
    )
