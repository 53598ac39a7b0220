"""From announcing a version to the devices that serve it: real processes on one Kafka."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import safetensors.numpy

from compose.launcher.state_dir import StateDir
from federation.registry.publisher import Publisher, announce, read_announced
from streams.contract.documents import DeviceState
from streams.contract.topics import FLEET, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from tests.bench.machine import watched
from tests.bench.release.stage import Stage
from tests.bench.report import Cell, Figure, Goal, Results, Table

DEVICES, QUICK_DEVICES, AT_ONCE = 50, 8, 4
ALMOST_ALL = 0.95
VERSIONS = 3  # offered one after the other
READY_S, SPREAD_S, LOOK_S = 120.0, 60.0, 0.02
SPEED = 1.0


def spread(stage: Stage, results: Results) -> None:
    """Seconds and bytes a device, for a few versions in turn."""
    count = QUICK_DEVICES if stage.quick else DEVICES
    names = [f"phone-{i:02d}-person-{1 + i % 30:02d}" for i in range(count)]
    base = stage.registry.serving()
    assert base is not None
    state_dict = len(safetensors.numpy.save(stage.second))
    ensure_topics(stage.kafka.settings, topic_specs(stage.task.name, 4))
    with stage.producer() as producer:
        announce(producer, stage.registry, None)
        with devices(stage, names):
            await_all(stage, names, base.model, READY_S)
            settled(stage, names)
            rows, loads, received = [], [], dict.fromkeys(names, 0)
            for number in range(1, (1 if stage.quick else VERSIONS) + 1):
                with watched(stage.kafka.pid) as load:
                    rows.append(_one(stage, producer, names, number, received, state_dict))
                loads.append(load.others)
                stage.say(f"version {number}: {rows[-1]}")
    seconds = Figure.of([row[2] for row in rows])
    share = Figure.of([row[6] for row in rows])
    results.goals += [
        Goal(f"announced to {ALMOST_ALL:.0%} of {count} devices serve it, s", seconds, at_most=3.0),
        Goal("bytes a device / plain float32 state dict", share, at_most=0.25),
    ]
    columns = ["version", "50 % serve it, s", "95 % serve it, s", "all serve it, s"]
    columns += ["of them announcing, s", "bytes a device", "of the state dict", "others' load"]
    cells: list[list[Cell]] = [[*row, f"{load:.0%}"] for row, load in zip(rows, loads, strict=True)]
    text = (
        f"{count} processes `tidewheel edge run` with HAR's model, replaying at real time; each "
        "version is fine-tuned of the first one, offered to all at once, and comes as a delta of "
        "the one before. Time begins before the decision is put on `releases`; a device counts "
        f"from when its slots name the version (its `serving` file, looked at every "
        f"{1000 * LOOK_S:.0f} ms). Bytes are those the device says it has received; the "
        f"plain float32 state dict has {state_dict:,} bytes."
    )
    results.tables.append(Table("From announced to served", text, columns, cells))


def _one(
    stage: Stage,
    producer: Publisher,
    names: Sequence[str],
    number: int,
    received: dict[str, int],
    whole: int,
) -> list[float]:
    base = stage.registry.serving()
    assert base is not None
    weights = stage.version(number)
    model = stage.made(base, weights)
    stage.offer_to_all(model)
    told = read_announced(stage.kafka.settings, stage.task.name)
    began = time.monotonic()
    announce(producer, stage.registry, told)
    announced = time.monotonic() - began
    served = sorted(at - began for at in await_all(stage, names, model.model, SPREAD_S))
    now = received_by(stage, names, model.model)
    each = median(now[name] - received[name] for name in names)
    received.update(now)
    stage.serve(model)
    announce(producer, stage.registry, read_announced(stage.kafka.settings, stage.task.name))
    at = [served[max(0, -(-int(share * 100) * len(served) // 100) - 1)] for share in (0.5, 0.95, 1)]
    return [number, *at, announced, each, each / whole]


@contextmanager
def devices(stage: Stage, names: Sequence[str]) -> Iterator[None]:
    """The processes, started a few at a time; ended by their ids."""
    environ = {**os.environ, "TIDEWHEEL_KAFKA": stage.kafka.settings.bootstrap}
    environ |= {"OMP_NUM_THREADS": "1"}
    running: list[subprocess.Popen[bytes]] = []
    log = stage.folder / "devices.log"
    try:
        with log.open("ab") as output:
            for i, name in enumerate(names):
                words = ["edge", "run", stage.reference, "--device", name]
                words += ["--state", str(stage.state), "--speed", str(SPEED), "--drain", "1"]
                command = [sys.executable, "-m", "compose.cli.main", *words]
                running.append(subprocess.Popen(command, env=environ, stdout=output, stderr=output))
                if i >= AT_ONCE:
                    await_all(stage, names[: i - AT_ONCE + 1], None, READY_S)
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_all(
    stage: Stage, names: Sequence[str], model: str | None, timeout_s: float
) -> list[float]:
    """When each was first seen to serve `model`, or any: monotonic seconds."""
    paths = {name: StateDir(stage.state).device(name) / "slots" / "serving" for name in names}
    found: dict[str, float] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < len(names):
        for name in names:
            if name not in found and _serves(paths[name], model):
                found[name] = time.monotonic()
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(found)} of {len(names)} serve {model} after {timeout_s:.0f} s")
        time.sleep(LOOK_S)
    return list(found.values())


def _serves(path: Path, model: str | None) -> bool:
    try:
        said = path.read_text()
    except OSError:
        return False
    return bool(said) if model is None else said == model


def settled(stage: Stage, names: Sequence[str]) -> None:
    """Until every device has accepted the decision that is announced."""
    last = stage.registry.last()
    assert last is not None
    fleet(stage, names, lambda state: state.release == last.decision.seq)


def received_by(stage: Stage, names: Sequence[str], model: str) -> dict[str, int]:
    found = fleet(stage, names, lambda state: state.active == model)
    return {name: state.received_bytes for name, state in found.items()}


def fleet(
    stage: Stage, names: Sequence[str], wanted: Callable[[DeviceState], bool]
) -> Mapping[str, DeviceState]:
    """What each device says, once it says what is wanted."""
    reader = Reader(stage.kafka.settings, [topic_name(stage.task.name, FLEET)])
    found: dict[str, DeviceState] = {}
    deadline = time.monotonic() + READY_S
    try:
        while len(found) < len(names):
            for message in reader.poll(0.25):
                state = DeviceState.decode(message.value)
                if state.device in names and wanted(state):
                    found[state.device] = state
            if time.monotonic() > deadline:
                raise SystemExit(f"only {len(found)} of {len(names)} devices say so")
    finally:
        reader.close()
    return found
