"""A real worker process on a Kafka with TLS, client certificates and passwords."""

import urllib.error
from contextlib import closing
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import (
    PARTITIONS,
    Fleet,
    all_published,
    batch,
    device_on,
    fleet,
    stop,
    until,
)
from tests.rig.servers.proxy import Proxy
from tests.rig.servers.secure_node import SecureNode
from tests.streams.worker.test_worker import ask

pytestmark = pytest.mark.kafka


def into_environment(settings: BrokerSettings, patch: pytest.MonkeyPatch) -> None:
    """As a user sets them; the worker's process reads them there."""
    for name, value in settings.fields().items():
        if name != "bootstrap" and value is not None:
            patch.setenv(f"TIDEWHEEL_KAFKA_{name.upper()}", str(value))


@pytest.mark.parametrize("door", ["tls", "scram-password"])
def test_a_worker_scores_publishes_and_commits_behind_each_door(
    secure_node: SecureNode, door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = secure_node.settings(door)
    into_environment(settings, monkeypatch)
    with fleet(settings, tmp_path, idle_close_s=0.5) as served:
        worker = served.start()
        served.ready("w0", list(range(PARTITIONS)))
        for first in range(0, 60, 10):
            times = [float(first + i) for i in range(10)]
            served.send(batch(device_on(0), first, times, task=served.task))
        served.wait_until_scored()
        until(lambda: all_published(served), "scores and windows are published")
        assert stop(worker) == 0


def test_a_worker_with_a_wrong_password_says_so_and_waits(
    secure_node: SecureNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = secure_node.settings("scram-password", password="wrong")
    into_environment(settings, monkeypatch)
    with fleet(settings, tmp_path, idle_close_s=0.5) as served:
        worker = served.start()
        until(lambda: "TIDEWHEEL_KAFKA_PASSWORD" in served.log("w0"), "what to do")
        assert worker.poll() is None
        lines = [line for line in served.log("w0").splitlines() if "waiting" in line]
        assert len(lines) == 1


def is_ready(served: Fleet) -> bool:
    try:
        return ask(served, "/ready") == "yes\n"
    except urllib.error.HTTPError as answer:
        answer.close()
        return False


def has_lag(served: Fleet) -> bool:
    return "tidewheel_lag_messages{" in ask(served, "/metrics")


def test_a_worker_whose_session_is_over_is_not_ready_and_knows_no_lag(
    secure_node: SecureNode, tmp_path: Path
) -> None:
    through = secure_node.settings("proxied", bootstrap=f"127.0.0.1:{secure_node.proxy_port}")
    port, door = secure_node.proxy_port, secure_node.ports["proxied"]
    with fleet(through, tmp_path, idle_close_s=0.5) as served:
        served.options["metrics_port"] = 0
        with closing(Proxy(port, door)):
            worker = served.start()
            served.ready("w0", list(range(PARTITIONS)))
            served.send(batch(device_on(0), 0, [1.0], task=served.task))
            until(lambda: has_lag(served), "it has a lag")
            assert is_ready(served)
        until(lambda: not is_ready(served), "its session is over")
        assert not has_lag(served)
        with closing(Proxy(port, door)):
            until(lambda: is_ready(served) and has_lag(served), "it is ready again")
            assert stop(worker) == 0
