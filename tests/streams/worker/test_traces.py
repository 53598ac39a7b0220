"""One event from the device to the store, followed by a real collector: a real agent, a real worker
and a real Kafka."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.contract.events.messages import sampled_parent
from streams.contract.events.records import EventBatch, decode_event_message
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.rig.made_up.models import artifact, plain
from tests.rig.processes import workers as support
from tests.rig.processes.workers import Fleet, fleet, stop, until
from tests.rig.servers.collector import Collector, collecting

pytestmark = pytest.mark.kafka
ALL = list(range(support.PARTITIONS))
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED")


@pytest.fixture
def served(
    kafka: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with fleet(kafka, tmp_path) as made:
        yield made


def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that are started from now on export to `collector`."""
    for name, value in collector.environ().items():
        monkeypatch.setenv(name, value)


@contextmanager
def agent(served: Fleet) -> Iterator["subprocess.Popen[bytes]"]:
    """A real agent that answers one pass of its readings."""
    key = create_key(served.folder / "keys" / "signing.pem")
    model = served.folder / "model.twa"
    model.write_bytes(artifact(key, plain(1), task=served.task))
    command = [sys.executable, "-m", "compose.cli.main", "edge", "run"]
    command += [f"{served.folder}/task.py:task", "--device", "d0", "--state", str(served.folder)]
    command += ["--kafka", served.broker.bootstrap, "--model", str(model), "--drain", "30"]
    command += ["--speed", "0", "--passes", "1"]
    with (served.folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            command, stderr=log, stdout=log, cwd=Path(__file__).parents[3], env={**os.environ}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def sent(served: Fleet) -> list[tuple[EventBatch, str]]:
    """The event messages on the topic with their headers."""
    found = []
    for m in served.read("events"):
        record = decode_event_message(served.task, m.key, m.value, m.headers)
        assert isinstance(record, EventBatch)
        found.append((record, sampled_parent(m.headers)))
    return found


def names(served: Fleet, topic: str) -> set[str]:
    """The spans that the messages of a topic name."""
    return {sampled_parent(m.headers)[36:52] for m in served.read(topic)}


@pytest.mark.timeout(120)
def test_one_event_is_followed_from_the_device_to_the_store(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        traced(collector, monkeypatch)
        worker = served.start()
        served.ready("w0", ALL)
        with agent(served) as process:
            assert process.wait(60) == 0, (served.folder / "agent.log").read_text()
        messages = sent(served)
        count = sum(events.rows.num_rows for events, _ in messages)
        until(lambda: len(served.scored()) == count, f"{count} events are scored")
        assert stop(worker) == 0

    delivered = {s.span: s for s in collector.spans if s.name == "device.deliver"}
    for events, at in messages:
        span = delivered[at[36:52]]
        assert (span.service, span.parent) == ("tidewheel-edge", "")
        about = [span.attributes[f"tidewheel.{name}"] for name in ("epoch", "first", "last")]
        assert about == [events.epoch, events.first, events.last]
    windows = [s for s in collector.spans if s.name == "worker.window"]
    followed = set()
    for window in windows:
        assert window.service == "tidewheel-worker"
        assert window.start_ns >= delivered[window.parent].start_ns
        followed |= {window.parent, *(span for _, span in window.links)}
    assert followed == delivered.keys()
    assert names(served, "scores") == names(served, "windows") == {w.span for w in windows}
