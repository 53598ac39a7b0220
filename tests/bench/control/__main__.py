"""`python -m tests.bench.control [--devices N] [--days N]`: see docs/architecture/control-plane.md.

Topics as after some days of a fleet: of each device a state every STATE_S that compaction has left
or not come to yet, a window's report an hour, and a run a day with an update of each device.
It prints the seconds and the peak memory of whole commands and of a controller's start, without a
snapshot and with one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer as FastProducer

from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.artifact import Manifest, pack
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.task import load_task
from streams.contract.topics import FLEET, ROUNDS, VIEW, WINDOWS, topic_name, topic_specs
from streams.contract.window_report import ClassAgreement, ModelWindow
from streams.contract.window_report import WindowReport as Report
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.bench.kafka import real_kafka
from tests.bench.meter import Sample, sample
from tests.fakes.own_task import own_task

HOUR_US = 3_600_000_000
STATES = 60  # of each device on `fleet`: ten minutes of one every 10 s
MOST_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.control")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--days", type=int, default=30)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with real_kafka(folder) as kafka:
            measure(folder, kafka.settings, asked.devices, asked.days)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def measure(folder: Path, broker: BrokerSettings, devices: int, days: int) -> None:
    reference = own_task(folder)
    task, state = load_task(reference), folder / "fleet"
    model, began = set_up(reference, state, broker), time.monotonic()
    count = fill(broker, task.name, made(task.name, model, devices, days))
    took = time.monotonic() - began
    say(f"{devices} devices, {days} days: {count} messages made in {took:.0f} s")
    words = [reference, "--state", str(state), "--kafka", broker.bootstrap]
    say(f"status without a snapshot: {command('status', *words, '--json')}")
    say(f"controller without a snapshot: {controller(broker, task.name, words)}")
    for name in ("status", "timeline", "status"):
        say(f"{name} with a snapshot: {command(name, *words, '--json')}")
    say(f"controller with a snapshot: {controller(broker, task.name, words)}")


def set_up(reference: str, state: Path, broker: BrokerSettings) -> str:
    """Make topics, a key and a registry that serves a first model; return its version."""
    task, layout = load_task(reference), StateDir(state)
    ensure_topics(broker, topic_specs(task.name))
    layout.signing_key.parent.mkdir(parents=True, exist_ok=True)
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, task.name, 1, [key.public_key()])
    manifest = Manifest(task=task.name, task_version=1, number=1, created_us=1, key="", files=[])
    model = registry.add(pack(manifest, {"weights.safetensors": b"w"}, key)).model
    registry.serve(model, key, "the first model")
    return model


Made = Iterator[tuple[str, str, bytes, int]]  # topic, key, value, time in us


def fill(broker: BrokerSettings, task: str, messages: Made) -> int:
    """Put messages on a task's topics; return how many."""
    producer = FastProducer(
        {"bootstrap.servers": broker.bootstrap, "compression.type": "zstd", "linger.ms": 50,
         "queue.buffering.max.messages": 500_000}
    )  # fmt: skip
    count = 0
    for topic, key, value, at_us in messages:
        while True:
            try:
                producer.produce(topic_name(task, topic), value, key, timestamp=at_us // 1000)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 10_000 == 0:
            producer.poll(0)
    producer.flush(MOST_S)
    return count


def made(task: str, model: str, devices: int, days: int) -> Made:
    begin_us = time.time_ns() // 1000 - days * 24 * HOUR_US
    names = names_of(devices)
    for hour in range(24 * days):
        at_us = begin_us + hour * HOUR_US
        yield from reports(task, model, names, at_us)
        if hour % 24 == 0:
            yield from a_run(str(hour), names, at_us)
    yield from states(task, model, names, STATES, 3000 * days)


def names_of(devices: int) -> list[str]:
    return [f"device-{n:05}" for n in range(devices)]


def reports(task: str, model: str, names: list[str], at_us: int) -> Made:
    """A window's report of each device."""
    classes = {"low": ClassAgreement(events=60, agreeing=50)}
    part = ModelWindow(events=120, compared=120, agreeing=100, labelled=12, correct=10)
    for name in names:
        report = Report(
            task=task, device=name, window_us=at_us, end_us=at_us + HOUR_US, revision=0,
            events=120, teacher_model="1-t", models={model: part}, classes=classes,
        )  # fmt: skip
        yield WINDOWS, name, report.encode(), at_us + HOUR_US


def states(task: str, model: str, names: list[str], count: int, produced: int) -> Made:
    """`count` states of each device, 10 s apart, the last one now."""
    now_us = time.time_ns() // 1000
    for n in range(count):
        at_us = now_us - (count - n) * 10_000_000
        for name in names:
            state = DeviceState(
                device=name, task=task, time_us=at_us, epoch="1-a", active=model, heartbeat_s=10,
                produced=produced + n, delivered=produced + n, pending=0,
            )  # fmt: skip
            yield FLEET, name, state.encode(), at_us


def a_run(run: str, names: list[str], at_us: int) -> Made:
    def event(kind: str, device: str | None = None) -> tuple[str, str, bytes, int]:
        found = RoundEvent.model_validate(
            {"run": run, "kind": kind, "time_us": at_us, "round": 1, "rounds": 1, "device": device}
        )
        return ROUNDS, run, found.encode(), at_us

    yield event("requested")
    yield event("started")
    for name in names:
        yield event("admitted", name)
    yield event("aggregated")
    yield event("finished")


def command(*words: str) -> str:
    """Run one and tell its seconds and peak memory."""
    argv = [sys.executable, "-m", "compose.cli.main", *words]
    began = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        _, code, used = os.wait4(process.pid, 0)
        took = time.monotonic() - began
        error = process.stderr.read().decode()[-200:] if process.stderr else ""
    failed = f", FAILED: {error}" if code else ""
    return f"{took:.1f} s, {used.ru_maxrss / 1000:.0f} MB{failed}"


@dataclass(frozen=True)
class Started:
    """A controller at its first snapshot: seconds since its start, CPU seconds and memory."""

    wall_s: float
    found: Sample


def controller(broker: BrokerSettings, task: str, words: list[str]) -> str:
    """Start one, wait for its first snapshot, and tell seconds and memory."""
    at = started(broker, task, words)
    if at is None:
        return "FAILED"
    return f"{at.wall_s:.1f} s to its first snapshot, {at.found.peak_bytes / 1e6:.0f} MB"


def started(broker: BrokerSettings, task: str, words: list[str]) -> Started | None:
    """Start a controller, wait for its first snapshot, and end it; None if there is none."""
    topic = topic_name(task, VIEW)
    said = RoundEvent(run="x", kind="aggregated", time_us=1).encode()  # something has come
    with closing(Producer(broker)) as producer:
        producer.put(topic_name(task, ROUNDS), b"x", said)
    with closing(Reader(broker, [topic], from_beginning=False)) as reader:
        reader.end(topic, 0)
        argv = [sys.executable, "-m", "compose.cli.main", "controller", *words]
        began = time.monotonic()
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as it:
            try:
                while not reader.poll(0.2):
                    if time.monotonic() - began > MOST_S or it.poll() is not None:
                        return None
                return Started(time.monotonic() - began, sample(it.pid))
            finally:
                it.terminate()


if __name__ == "__main__":
    main()
