"""What a real agent tells over HTTP, and what its numbers are made of."""

import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_client.metrics import DeviceMetrics
from streams.contract.documents import DeviceState
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import fails, tidewheel
from tests.rig.made_up.models import TINY
from tests.rig.processes.agent_process import AgentProcess, first_model
from tests.rig.processes.workers import until

ROOT = Path(__file__).parents[2]
Numbers = dict[tuple[str, tuple[str, ...]], float]


class Agent:
    """An agent's state as a test sets it."""

    connected = ready = alive = True
    told = DeviceState(
        device="d0", task="tiny", time_us=1, epoch="e1", active="2-bbbbbbbb", produced=0,
        delivered=0, pending=0,
    )  # fmt: skip

    def state(self) -> DeviceState:
        return self.told


def numbers(text: str) -> Numbers:
    """By name and label values, as Prometheus reads them."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_number_of_the_state_is_told(tmp_path: Path) -> None:
    agent = Agent()
    (tmp_path / "1.seg").write_bytes(b"x" * 70)
    (tmp_path / "position.0").write_bytes(b"x" * 30)
    metrics = DeviceMetrics(agent, tmp_path, 1000)
    agent.told = agent.told.replace(
        produced=10, delivered=5, pending=2, dropped={"full": 2, "metered": 1}, skipped={"gap": 4},
        samples=9, true_labels=3, teacher_labels=6, latency_p50_us=250.0, latency_p99_us=1000.0,
        phase="training", previous="1-aaaaaaaa", refused={"3-cccccccc": "why"}, error="no broker",
    )  # fmt: skip
    agent.connected = False
    text = metrics.text().decode()
    assert "# TYPE tidewheel_edge_answer_seconds summary\n" in text
    found = numbers(text)
    info = found.pop(("tidewheel_edge_info", ("2-bbbbbbbb", "d0", "e1", "1-aaaaaaaa", "tiny")))
    assert info == 1
    assert {(name.removeprefix("tidewheel_edge_"), *labels): n
            for (name, labels), n in found.items()} == {
        ("answers_total",): 10, ("delivered_total",): 5, ("pending",): 2,
        ("dropped_total", "full"): 2, ("dropped_total", "metered"): 1,
        ("skipped_total", "gap"): 4,
        ("samples", "any"): 9, ("samples", "true"): 3, ("samples", "teacher"): 6,
        ("answer_seconds", "0.5"): 0.00025, ("answer_seconds", "0.99"): 0.001,
        ("training",): 1, ("training_held_back",): 0, ("refused_models",): 1,
        ("challenger_answers",): 0,
        ("spool_bytes",): 100, ("spool_limit_bytes",): 1000, ("connected",): 0, ("error",): 1,
    }  # fmt: skip


def test_a_new_version_is_told_alone(tmp_path: Path) -> None:
    agent = Agent()
    metrics = DeviceMetrics(agent, tmp_path, 1000)
    metrics.text()
    agent.told = agent.told.replace(active="4-dddddddd")
    found = [labels for name, labels in numbers(metrics.text().decode()) if name.endswith("_info")]
    assert [labels[0] for labels in found] == ["4-dddddddd"]


class Served(AgentProcess):
    """`tidewheel edge run --metrics-port 0`, without a broker in reach."""

    def __init__(self, state: Path, *words: str | Path) -> None:
        super().__init__(state, "--drain", "0", "--metrics-port", "0", *words)

    @property
    def port(self) -> int:
        self.check()
        found = re.search(r"metrics on 127\.0\.0\.1:(\d+)", self.log)
        return int(found[1]) if found else 0

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.status, exc.read().decode()

    def number(self, name: str, *labels: str) -> float:
        return numbers(self.get("/metrics")[1]).get((f"tidewheel_edge_{name}", labels), 0.0)


@pytest.fixture
def served() -> Iterator[list[Served]]:
    made: list[Served] = []
    yield made
    for one in made:
        one.close()


def test_an_agent_tells_what_it_does(tmp_path: Path, served: list[Served]) -> None:
    agent = Served(tmp_path, "--model", first_model(tmp_path), "--speed", "50")
    served.append(agent)
    until(lambda: agent.port > 0, "it says its port")
    until(lambda: agent.number("answers_total") > 10, "it answers")
    assert (agent.get("/ready"), agent.get("/live")) == ((200, "yes\n"), (200, "yes\n"))
    assert agent.get("/state")[0] == 404
    until(lambda: agent.number("error") == 1, "it tells that there is no broker")
    assert agent.number("connected") == 0
    assert agent.number("pending") > 10
    assert agent.number("spool_bytes") > 1000
    assert 0 < agent.number("answer_seconds", "0.5") <= agent.number("answer_seconds", "0.99")
    until(lambda: agent.number("samples", "true") > 0, "some labels are told")
    agent.process.send_signal(signal.SIGUSR1)
    until(lambda: "(most recent call first)" in agent.log, "where its threads are")
    assert agent.end() == 0


def test_a_device_without_a_model_is_alive_and_not_ready(
    tmp_path: Path, served: list[Served]
) -> None:
    create_key(tmp_path / "keys" / "signing.pem")
    agent = Served(tmp_path)
    served.append(agent)
    until(lambda: agent.port > 0, "it says its port")
    assert (agent.get("/ready"), agent.get("/live")) == ((503, "no\n"), (200, "yes\n"))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, served: list[Served]) -> None:
    create_key(tmp_path / "keys" / "signing.pem")
    agent = Served(tmp_path)
    served.append(agent)
    until(lambda: agent.port > 0, "it says its port")
    words = ("edge", "run", TINY, "--device", "d1", "--state", str(tmp_path))
    port = str(agent.port)
    done = tidewheel(*words, "--metrics-port", port, folder=tmp_path, PYTHONPATH=str(ROOT))
    fails(done, 2, f"metrics cannot be served on 127.0.0.1:{port}")
