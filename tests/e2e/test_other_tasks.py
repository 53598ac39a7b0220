"""The whole loop of other kinds of tasks: numbers instead of classes, and predictions alone on the
wire, where no raw reading may be found in anything that left the device."""

import itertools
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy

from edge_client.spool.writer import Event, SpoolWriter
from streams.contract.artifact import WEIGHTS, unpack
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, topic_name, topic_specs
from streams.contract.zstd import MAGIC, ZstdError, compressed, zstd
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from streams.segments.segmentation import segments_of
from tests.edge_client.uplink.test_kafka import Device
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.fleet import Place, Running, check_account, until

DEVICES = ("d0", "d1", "d2")
LOOP = ["--devices", "3", "--until-closed", "--speed", "30", "--rounds", "1", "--timeout", "720"]
LOOP += ["--stages", "0.5,1"]
PREDICTION = """
from dataclasses import replace
from tidewheel import Tumbling, load_task
tiny = load_task("{tiny}")
training = replace(tiny.training, label_share=0.8, epochs=24, choice="offered")
task = replace(tiny, name="quiet", upload="prediction", training=training)
"""
# The topics on which something comes in such a run, all but `view`, which may be too late for it.
NAMED = ("events", "scores", "windows", "fleet", "rounds", "releases", "artifacts", "dead-letters")
KEEP = """
create table kept as select content from objects;
create trigger keep after update of content on objects begin
    insert into kept values (new.content);
end;
"""
# How fast a machine turns, in hertz, from the same vibrations and its gear, a category; a reading
# an hour, with dates of 2024, so that a recording is more than a year.
HOURLY = str(30 * 20 * 3600)  # as many readings a second
REGRESSION = """
from dataclasses import replace
from tidewheel import Category, Tumbling, load_task
tiny = load_task("{tiny}")
HERTZ = (1.0, 2.5, 5.0)
NEW_YEAR_US, HOUR_US = 1_704_067_200_000_000, 3_600_000_000
GEAR = Category("gear", size=20)

def readings(device):
    for hour, reading in enumerate(tiny.readings(device)):
        values = (*reading.values, "gear " + str(hour // 160 % 4))
        label = HERTZ[int(reading.label)]
        yield reading._replace(time_us=NEW_YEAR_US + hour * HOUR_US, values=values, label=label)

def build_model():
    import torch
    from torch import nn

    class Hertz(nn.Module):
        def __init__(self):
            super().__init__()
            self.waves = nn.Sequential(*list(tiny.build_model())[:-1])
            self.gears, self.head = nn.Embedding(GEAR.size, 2), nn.Linear(10, 1)

        def forward(self, x):
            gear = self.gears(x[:, 2, -1].long())
            return self.head(torch.cat((self.waves(x[:, :2]), gear), dim=1))

    return Hertz()

task = replace(
    tiny, name="hertz", channels=("x", "y", GEAR), classes=(), targets=("hertz",), tolerance=1.0,
    readings=readings,
    build_model=build_model, build_teacher=None, rate_hz=1 / 3600, window=Tumbling(100 * 3600),
    lateness_s=20 * 3600,
)
"""
# What others call "slow" is "middle" on d1 and on the pilot, so what the fleet learns harms d1.
CONTRARY = """
from dataclasses import replace
from tidewheel import load_task
tiny = load_task("{tiny}")
CALLED = (1.0, 0.0, 2.0)

def readings(device):
    other = device in ("d1", "pilot-0")
    for reading in tiny.readings("pilot-0" if other else device):
        yield reading._replace(label=CALLED[int(reading.label)]) if other else reading

training = replace(tiny.training, label_share=0.8, choice="offered", epochs=20)
task = replace(
    tiny, name="contrary", metric="balanced_accuracy", readings=readings, training=training,
    may_trade_classes=True,
)
"""


def write(place: Place, text: str) -> str:
    path = place.folder / "other.py"
    path.write_text(text.format(tiny=place.task))
    return f"{path}:task"


def closes(place: Place, running: Running) -> dict[str, Any]:
    assert running.ends(300) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    assert summary["closed"] is True
    check_account(place, summary)
    assert {line["active"] for line in summary["devices"]} == {summary["last_model"]}
    assert summary["last_model"] != summary["first_model"]
    return summary


@pytest.mark.kafka
@pytest.mark.timeout(1200)
def test_a_fleet_that_predicts_numbers_learns(kafka_place: Place) -> None:
    task = write(kafka_place, REGRESSION)
    loop = [*LOOP, "--speed", HOURLY]
    running = kafka_place.up("up", *loop, task=task)
    summary = closes(kafka_place, running)
    assert summary["problems"] == []
    run, (before, after) = summary["runs"][-1], summary["fleet"]
    assert (run["metric"], summary["row_metric"]) == ("mae", "mae")
    assert after < before  # errors
    assert run["metrics"]["audit"] < run["metrics"]["audit_base"]
    assert run["reason"].startswith("MAE on ")
    assert summary["agreement_called"] == "MAE from the teacher"
    agreement = summary["agreement"]
    assert 0 < agreement[summary["last_model"]] < agreement[summary["first_model"]]
    assert "MAE from the teacher of 1-" in running.said  # why the run started
    assert re.search(r"canary passed: .* MAE from (the teacher|true labels) 0\.\d+", running.said)
    [(mae,)] = kafka_place.rows("select max(mae) from windows")
    assert mae > 0
    [row] = kafka_place.rows(
        'select count(*), min(len(outputs)), max(len(outputs)), year(min("time")) from scores'
    )
    assert row[1:] == (1, 1, 2024)


@pytest.mark.timeout(1200)
def test_a_device_that_the_fleets_version_harms_is_named(embedded_place: Place) -> None:
    """True labels judge the canary, which the others carry, and say who lost what."""
    task = write(embedded_place, CONTRARY)
    words = [*LOOP, "--devices", "6", "--rounds", "4", "--stages", "1"]  # d1 is in the canary
    running = embedded_place.up("up", *words, task=task)
    summary = closes(embedded_place, running)
    before, after = summary["first_model"], summary["last_model"]
    assert summary["agreement_called"] == "balanced agreement with true labels"
    assert re.search(r"canary passed: .* balanced agreement with true labels 0\.\d+", running.said)
    named = f"d1 answers worse with {after} than {before}: "
    texts = [problem["text"] for problem in summary["problems"]]
    warnings = [text.removeprefix(named) for text in texts if named in text]
    assert any(re.match(r"class (slow|middle): [01]\.\d+ → 0\.\d+ on ", text) for text in warnings)
    shown = embedded_place.tidewheel("timeline", task, "--state", embedded_place.state)
    assert named.removesuffix(": ") in shown  # without a broker: what `up` saw last


@pytest.mark.timeout(1200)
def test_a_fleet_that_sends_predictions_alone_learns_and_no_reading_leaves_a_device(
    embedded_place: Place,
) -> None:
    """On the embedded broker, with TLS and registered keys for Flower's part."""
    place = embedded_place
    reference = write(place, PREDICTION)
    task, state = load_task(reference), place.state
    running = place.up("up", *LOOP, "--secure", task=reference)
    running.until_said("keeps everything in memory", 60)  # what it is not is said at start
    until(lambda: place.find("-m", "compose.cli.main", "controller"), "the SuperLink is ready", 150)
    keep_objects(state)
    running.until_said("3 serve 1-", 150)
    until(lambda: nodes_online(place) == list(DEVICES), "all nodes are let in", 60)
    running.until_said("goes to stage 1: offered to", 240)
    broker = broker_of(state)
    spoil_a_message(task, broker)
    until(lambda: messages(task, broker)["dead-letters"], "it is a dead letter", 60)
    raw = patterns(task)
    assert len(raw) > 1000
    sent = messages(task, broker)
    for topic in NAMED:
        assert sent[topic], topic
    for topic, data in sent.items():
        assert not found(raw, data), topic
    objects = kept_objects(state)
    assert not found(raw, objects)
    # Both ways are seen there, in which weights lie as readings would.
    assert found(weights(task, state), objects)
    assert all(name.encode() in objects for name in DEVICES)
    apart = {"devices", "broker"}  # the broker's own files, of which all messages were read
    elsewhere = [p for p in state.rglob("*") if p.is_file() and apart.isdisjoint(p.parts)]
    assert {"superlink.db", "rounds.jsonl"} <= {path.name for path in elsewhere}
    held_out = "heldout.safetensors"  # the server's own, of people in no fleet
    for path in elsewhere:
        assert path.name == held_out or not found(raw, path.read_bytes()), path
    summary = closes(place, running)
    before, after = summary["fleet"]
    assert after > before
    # The same search finds them where they are: in what a device remembers.
    assert found(raw, (state / "devices" / "d0" / "samples.rows").read_bytes())


@pytest.mark.parametrize("upload", ["segment", "prediction"])
def test_the_search_finds_the_readings_that_a_task_sends(
    embedded: BrokerSettings, tmp_path: Path, upload: Literal["segment", "prediction"]
) -> None:
    """The same segments, by a device's spool and uplink; plain and packed."""
    task = replace(tiny, name=f"search-{upload}", upload=upload)
    ensure_topics(embedded, topic_specs(task.id, 1))
    device = Device(task, embedded, tmp_path)
    device.uplink.start()
    writer = SpoolWriter(task, device.spool)
    cut = list(itertools.islice(segments_of(task.readings("d0"), task), 20))
    for first, last, segment, label in cut:
        writer.put(Event(last, "1-aaaaaaaa", np.zeros(3, np.float32), label, segment, first))
    writer.write(last=True)
    device.delivered(len(cut))
    device.uplink.stop(10.0)
    data = messages(task, embedded)[EVENTS]
    assert data
    assert found(patterns(task), data) is (upload == "segment")
    packed = compressed(data)
    assert found(patterns(task), b"before" + packed + b"after") is (upload == "segment")


def nodes_online(place: Place) -> list[str]:
    """As `tidewheel node list` finds them, which knows the SuperLink from the state folder."""
    found = json.loads(place.tidewheel("node", "list", "--state", place.state, "--json"))
    return [line["device"] for line in found if line["status"] == "online"]


def patterns(task: Task) -> set[bytes]:
    """Six readings of one channel in a row, as they would lie in an array, of each type."""
    some = []
    for device in DEVICES:
        cut = itertools.islice(segments_of(task.readings(device), task), 0, 600, 4)
        some += [segment[0, :6] for _, _, segment, _ in cut]
    return as_bytes(some)


def weights(task: Task, state: Path) -> set[bytes]:
    """The same of the first model's weights."""
    [path] = (state / "registry" / "models").glob("1-*.twa")
    key = create_key(state / "keys" / "signing.pem").public_key()
    model = unpack(path.read_bytes(), [key], task=task.name, task_version=task.version)
    tensors = safetensors.numpy.load(model.files[WEIGHTS])
    return as_bytes([tensor.reshape(-1)[:6] for tensor in tensors.values() if tensor.size >= 6])


def as_bytes(rows: list[np.ndarray]) -> set[bytes]:
    kinds = (np.float32, np.float64, np.float16)
    return {row.astype(kind).tobytes() for row in rows for kind in kinds}


def broker_of(state: Path) -> BrokerSettings:
    port = json.loads((state / "broker" / "ports.json").read_text())["broker"]
    return BrokerSettings(bootstrap=f"127.0.0.1:{port}")


def received(task: Task, broker: BrokerSettings, topic: str) -> list[Received]:
    reader = Reader(broker, [topic_name(task.id, topic)])
    try:
        return list(reader.read_to_end())
    finally:
        reader.close()


def messages(task: Task, broker: BrokerSettings) -> dict[str, bytes]:
    """Of every topic of the task all that is on it: keys, values and headers."""
    found = {}
    for spec in topic_specs(task.id):
        topic = spec.name.removeprefix(f"{task.id}.")
        parts = [
            part
            for m in received(task, broker, topic)
            for part in (m.key, m.value, *(value for _, value in m.headers))
        ]
        found[topic] = b"\0".join(p for p in parts if p)
    return found


def spoil_a_message(task: Task, broker: BrokerSettings) -> None:
    """Send a message of a device again, cut short, which no worker can read."""
    message = received(task, broker, EVENTS)[0]
    assert message.value
    producer = Producer(broker)
    try:
        topic = topic_name(task.id, EVENTS)
        producer.put(topic, message.key, message.value[:-1], message.headers)
    finally:
        producer.close()


def keep_objects(state: Path) -> None:
    """Let the SuperLink's database keep all that servers and devices send each other, which it
    deletes as soon as it has arrived. Nothing has been sent before."""
    with closing(sqlite3.connect(superlink_db(state), timeout=60)) as database:
        assert database.execute("select count(*) from objects").fetchone() == (0,)
        database.executescript(KEEP)


def kept_objects(state: Path) -> bytes:
    with closing(sqlite3.connect(superlink_db(state), timeout=60)) as database:
        return b"\0".join(content for (content,) in database.execute("select content from kept"))


def superlink_db(state: Path) -> Path:
    return state / "flower" / "superlink.db"


def found(raw: set[bytes], data: bytes) -> bool:
    """Whether one of them is in `data`, or in what is packed by zstd in it."""
    return any(lies_in(raw, place) for place in (data, *unpacked(data)))


def lies_in(raw: set[bytes], data: bytes) -> bool:
    """Two bytes of each pattern are looked for at all places at once, then the whole."""
    for size in {len(pattern) for pattern in raw}:
        wanted = {pattern for pattern in raw if len(pattern) == size}
        inside = 4 if size == 48 else 0  # a float64 made of a float32 begins with zeros
        table = np.zeros(1 << 16, bool)
        table[[int.from_bytes(p[inside : inside + 2], "little") for p in wanted]] = True
        for odd in (0, 1):
            pairs = np.frombuffer(data[odd : len(data) - (len(data) - odd) % 2], "<u2")
            starts = (2 * np.flatnonzero(table[pairs]) + odd - inside).tolist()
            if any(data[at : at + size] in wanted for at in starts if at >= 0):
                return True
    return False


def unpacked(data: bytes) -> Iterator[bytes]:
    """What lies in zstd frames, as weights do; but for those that need the version before."""
    view = memoryview(data)
    for match in re.finditer(re.escape(MAGIC), data):
        unpacker, parts, at = zstd.ZstdDecompressor(), [], match.start()
        with suppress(ZstdError):
            while at < len(data) and not unpacker.eof:
                parts.append(unpacker.decompress(view[at : at + 65536]))
                at += 65536
        yield b"".join(parts)
