"""The sample producers write events and read scores on a real Kafka, without our package."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streams.contract.task import Task
from streams.contract.topics import topic_name
from streams.kafka.settings import BrokerSettings
from tests.rig.asked import asked
from tests.rig.processes.workers import PARTITIONS, Fleet, all_published, fleet, until
from tests.rig.servers.kafka import with_kafka

pytestmark = pytest.mark.kafka

FOLDER = Path(__file__).parents[2] / "examples" / "producer"
PROGRAM, PLAIN = FOLDER / "send_events.py", FOLDER / "send_json.py"
LIBRARIES = {
    PROGRAM: {"json", "sys", "time", "uuid", "numpy", "pyarrow", "kafka"},
    PLAIN: {"json", "sys", "random", "datetime", "kafka"},
}


@pytest.mark.parametrize("program", LIBRARIES)
def test_it_uses_nothing_of_tidewheel(program: Path) -> None:
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(program.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name is not None
    }
    assert names == LIBRARIES[program]


def console(served: Fleet) -> list[str | Path]:
    """Kafka's own console producer, which reads a line `device<tab>event` for each message."""
    home = with_kafka().get("KAFKA_HOME")
    if home is None:
        pytest.skip("needs KAFKA_HOME")
    return [
        Path(home) / "bin" / "kafka-console-producer.sh",
        "--bootstrap-server", served.broker.bootstrap, "--topic", f"{served.task.id}.events",
        "--property", "parse.key=true",
    ]  # fmt: skip


def line(n: int, task: Task) -> str:
    segment = [[float(n)] * task.segment.samples] * len(task.channels)
    return "my-device\t" + json.dumps({"time_us": n * 1_000_000, "segment": segment, "answer": 0})


@pytest.mark.parametrize("producer", ["python", "kafkajs", "console"])
def test_json_of_plain_producers_is_scored_and_stored_once(
    kafka: BrokerSettings, tmp_path: Path, producer: str
) -> None:
    with fleet(kafka, tmp_path, idle_close_s=0.5) as served:
        served.start()
        served.ready("w0", list(range(PARTITIONS)))
        channels, samples = served.task.segment_shape
        words = [kafka.bootstrap, served.task.id, channels, samples, served.task.outputs, 60]
        command: list[str | Path] = [sys.executable, PLAIN, *map(str, words)]
        lines = None
        if producer == "kafkajs":
            if shutil.which("npm") is None:
                pytest.skip("needs node and npm")
            install = ["npm", "install", "--no-audit", "--no-fund", "kafkajs@2.2.4"]
            npm = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            if npm.returncode:  # without a package registry
                pytest.skip(f"npm cannot install kafkajs: {npm.stderr[-300:]}")
            shutil.copy(FOLDER / "send_json.js", tmp_path)
            command = ["node", "send_json.js", *map(str, words)]
        elif producer == "console":
            command = console(served)
            lines = "".join(f"{line(n, served.task)}\n" for n in range(60))
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, input=lines
        )
        assert done.returncode == 0, done.stderr
        until(lambda: served.count() == 60, "60 events are scored")
        until(lambda: all_published(served), "their windows are reported")
        assert len(set(served.scored())) == 60
        assert {device for device, _, _ in served.scored()} == {"my-device"}
        names = [name for (name,) in asked(served.store, "select event_id from scores")]
        orders = {f"order-{n}" for n in range(60)}
        assert set(names) == ({None} if producer == "console" else orders)
        assert served.read("dead-letters") == []


def test_its_events_are_scored_and_its_windows_reported(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with fleet(kafka, tmp_path, idle_close_s=0.5) as served:
        served.start()
        channels, samples = served.task.segment_shape
        words = [kafka.bootstrap, served.task.id, channels, samples, served.task.outputs, 60]
        topic = topic_name(served.task.id, "events")
        served.producer.put(topic, b"my-device", b"{}")  # a dead letter of another producer
        until(lambda: served.read("dead-letters"), "it is refused")
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, PROGRAM, *map(str, words)], cwd=tmp_path, capture_output=True,
                text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "sent 60 events of my-device" in done.stdout
            assert "all 60 events are scored" in done.stdout
            found = re.findall(r"window \d+: (\d+) events", done.stdout)
            assert len(found) >= 2
            assert sum(map(int, found)) <= 60  # none of an earlier run


def test_events_that_are_refused_end_it_with_the_reason(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with fleet(kafka, tmp_path, idle_close_s=0.5) as served:
        served.start()
        channels, samples = served.task.segment_shape
        words = [kafka.bootstrap, served.task.id, channels, samples + 1, served.task.outputs]
        done = subprocess.run(
            [sys.executable, PROGRAM, *map(str, words)], cwd=tmp_path, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 1
        assert "refused: " in done.stderr
        assert "segment" in done.stderr
