"""The sample producer writes events and reads scores on a real Kafka, without our package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import fleet

pytestmark = pytest.mark.kafka

PROGRAM = Path(__file__).parents[2] / "examples" / "producer" / "send_events.py"


def test_it_uses_nothing_of_tidewheel() -> None:
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name is not None
    }
    assert names == {"json", "sys", "time", "uuid", "numpy", "pyarrow", "kafka"}


def test_its_events_are_scored_and_its_windows_reported(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with fleet(kafka, tmp_path) as served:
        served.start()
        channels, samples = served.task.segment_shape
        words = [kafka.bootstrap, served.task.id, channels, samples, served.task.outputs, 60]
        done = subprocess.run(
            [sys.executable, PROGRAM, *map(str, words)], cwd=tmp_path, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "sent 60 events of my-device" in done.stdout
        assert "all 60 events are scored" in done.stdout
        assert done.stdout.count("window ") >= 2


def test_events_that_are_refused_end_it_with_the_reason(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    with fleet(kafka, tmp_path) as served:
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
