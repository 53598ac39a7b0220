"""The whole loop of other kinds of tasks: numbers instead of classes, and predictions alone on the
wire, where no raw reading may be found in anything that left the device."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.contract.task import Task, load_task
from streams.contract.topics import topic_specs
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.segments.segmentation import segments_of
from tests.e2e.support import Place, Running, check_account, until

DEVICES = ("d0", "d1", "d2")
LOOP = ["--devices", "3", "--until-closed", "--speed", "30", "--rounds", "1", "--timeout", "240"]
LOOP += ["--stages", "0.5,1"]
PREDICTION = """
from dataclasses import replace
from tidewheel import load_task
tiny = load_task("{tiny}")
training = replace(tiny.training, label_share=0.8)
task = replace(tiny, name="quiet", upload="prediction", training=training)
"""
# How fast a machine turns, in hertz, from the same vibrations; a reading an hour, with dates of
# 2024, so that a recording is more than a year.
HOURLY = str(30 * 20 * 3600)  # as many readings a second
REGRESSION = """
from dataclasses import replace
from tidewheel import load_task
tiny = load_task("{tiny}")
HERTZ = (1.0, 2.5, 5.0)
NEW_YEAR_US, HOUR_US = 1_704_067_200_000_000, 3_600_000_000

def readings(device):
    for hour, reading in enumerate(tiny.readings(device)):
        label = HERTZ[int(reading.label)]
        yield reading._replace(time_us=NEW_YEAR_US + hour * HOUR_US, label=label)

def build_model():
    from torch import nn
    model = tiny.build_model()
    return nn.Sequential(*list(model)[:-1], nn.Linear(8, 1))

task = replace(
    tiny, name="hertz", classes=(), targets=("hertz",), tolerance=1.0, readings=readings,
    build_model=build_model, build_teacher=None, rate_hz=1 / 3600, window_s=100 * 3600,
    lateness_s=20 * 3600,
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
    assert {line["last"] for line in summary["devices"]} == {summary["last_model"]}
    assert summary["last_model"] != summary["first_model"]
    return summary


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_a_fleet_that_predicts_numbers_learns(kafka_place: Place) -> None:
    task = write(kafka_place, REGRESSION)
    loop = [*LOOP, "--speed", HOURLY]
    running = kafka_place.up("up", *loop, task=task)
    summary = closes(kafka_place, running)
    assert summary["warnings"] == []
    assert (summary["metric"], summary["row_metric"]) == ("mae", "mae")
    assert summary["fleet_after"] < summary["fleet_before"]  # errors
    assert summary["held_out_after"] < summary["held_out_before"]
    assert summary["runs"][-1]["reason"].startswith("MAE on ")
    assert summary["agreement_called"] == "MAE from the teacher"
    assert 0 < summary["agreement_after"] < summary["agreement_before"]
    assert "MAE from the teacher of 1-" in running.said  # why the run started
    assert re.search(r"canary passed: .* MAE from the teacher 0\.\d+", running.said)
    [(mae,)] = kafka_place.rows("select max(mae) from windows")
    assert mae > 0
    [row] = kafka_place.rows(
        'select count(*), min(len(outputs)), max(len(outputs)), year(min("time")) from scores'
    )
    assert row[1:] == (1, 1, 2024)


@pytest.mark.timeout(400)
def test_a_fleet_that_sends_predictions_alone_learns_and_no_reading_leaves_a_device(
    embedded_place: Place,
) -> None:
    """On the embedded broker, with TLS and registered keys for Flower's part."""
    place = embedded_place
    reference = write(place, PREDICTION)
    task, state = load_task(reference), place.state
    running = place.up("up", *LOOP, "--secure", task=reference)
    running.until_said("keeps everything in memory", 60)  # what it is not is said at start
    running.until_said("3 serve 1-", 150)
    until(lambda: nodes_online(place) == list(DEVICES), "all nodes are let in", 60)
    running.until_said("goes to stage 1: offered to", 240)
    raw = patterns(task)
    assert len(raw) > 1000
    sent = messages(task, state)
    assert {"events", "fleet", "rounds", "windows", "artifacts"} <= sent.keys()
    for topic, data in sent.items():
        assert not found(raw, data), topic
    apart = {"devices", "broker"}  # the broker's own files, of which all messages were read
    elsewhere = [p for p in state.rglob("*") if p.is_file() and apart.isdisjoint(p.parts)]
    assert {"superlink.db", "rounds.jsonl"} <= {path.name for path in elsewhere}
    held_out = "heldout.safetensors"  # the server's own, of people in no fleet
    for path in elsewhere:
        assert path.name == held_out or not found(raw, path.read_bytes()), path
    summary = closes(place, running)
    assert summary["fleet_after"] > summary["fleet_before"]
    # The same search finds them where they are: in what a device remembers.
    assert found(raw, (state / "devices" / "d0" / "samples.arrow").read_bytes())


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
    kinds = (np.float32, np.float64, np.float16)
    return {row.astype(kind).tobytes() for row in some for kind in kinds}


def messages(task: Task, state: Path) -> dict[str, bytes]:
    """Of every topic of the task all that is on it: keys, values and headers."""
    port = json.loads((state / "broker" / "ports.json").read_text())["broker"]
    broker = BrokerSettings(bootstrap=f"127.0.0.1:{port}")
    found = {}
    for spec in topic_specs(task.name):
        reader = Reader(broker, [spec.name])
        try:
            parts = [
                part
                for m in reader.read_to_end()
                for part in (m.key, m.value, *(value for _, value in m.headers))
            ]
        finally:
            reader.close()
        found[spec.name.removeprefix(f"{task.name}.")] = b"\0".join(p for p in parts if p)
    return found


def found(raw: set[bytes], data: bytes) -> bool:
    return any(pattern in data for pattern in raw)
