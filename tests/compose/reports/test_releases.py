"""`tidewheel releases`: decisions from Kafka, or from the registry where there is none."""

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from compose.launcher.state_dir import StateDir
from compose.reports.releases import (
    follow,
    print_decision,
    print_decisions,
    read_decisions,
)
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.decisions import Decision
from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.compose import messages
from tests.compose.cli.test_cli import TINY, fails, port_without_listener, tidewheel
from tests.fakes.own_task import own_task
from tests.federation.registries import model, offer, serve


def kept(folder: Path, task: str = "tiny") -> Registry:
    """One version served, the next on offer."""
    layout = StateDir(folder / ".tidewheel")
    key = create_key(layout.signing_key)
    registry = Registry(layout.registry, task, 1, [key.public_key()])
    serve(registry, model(registry, 1, key), key)
    offer(registry, model(registry, 2, key), key)
    return registry


def printed(found: list[Decision], *, as_json: bool = False) -> str:
    text = io.StringIO()
    print_decisions("tiny", found, Console(file=text, width=140), as_json=as_json)
    return text.getvalue()


def test_a_decision_counts_once_in_the_order_of_their_numbers() -> None:
    told = [
        messages.release("2-bbbbbbbb", 2, key="tiny/00000002"),
        messages.release("1-aaaaaaaa", 1, key="tiny/00000001"),
        messages.release("2-bbbbbbbb", 2),
        messages.received("releases", "tiny", b"garbage"),
    ]
    view = FleetView("tiny")
    for message in told:
        view.absorb(message)
    found = view.decided
    assert [d.seq for d in found] == [1, 2]
    text = printed(found)
    assert "tiny: 2 decisions" in text
    data = json.loads(printed(found, as_json=True))
    assert [d["model"] for d in data["decisions"]] == ["1-aaaaaaaa", "2-bbbbbbbb"]
    assert data["decisions"][0]["evidence"] == {}
    out = io.StringIO()
    print_decision(found[0], Console(file=out, width=40), as_json=False)
    assert out.getvalue().endswith("1 served 1-aaaaaaaa: a test\n")


def test_without_a_broker_the_registry_is_read(tmp_path: Path) -> None:
    registry = kept(tmp_path)
    done = tidewheel("releases", TINY, "--offline", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)["decisions"]
    assert [(d["seq"], d["kind"], d["share"]) for d in data] == [
        (1, "served", 0.0), (2, "stage", 0.05),
    ]  # fmt: skip
    address = f"127.0.0.1:{port_without_listener()}"
    done = tidewheel("releases", TINY, "--kafka", address, folder=tmp_path)
    assert done.returncode == 0
    assert "2 decisions" in done.stdout
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "read from .tidewheel/registry" in line
    assert registry.where.endswith(".tidewheel/registry")


def test_following_needs_a_broker(tmp_path: Path) -> None:
    done = tidewheel("releases", TINY, "--offline", "--follow", folder=tmp_path)
    fails(done, 2, "--follow", "--offline")
    address = f"127.0.0.1:{port_without_listener()}"
    done = tidewheel("releases", TINY, "--follow", "--kafka", address, folder=tmp_path)
    fails(done, 1, address)


@pytest.mark.kafka
def test_decisions_are_read_from_kafka_and_followed(kafka: BrokerSettings, tmp_path: Path) -> None:
    task = load_task(own_task(tmp_path))
    registry = kept(tmp_path, task.name)
    key = create_key(StateDir(tmp_path / ".tidewheel").signing_key)
    ensure_topics(kafka, topic_specs(task.name))
    producer = Producer(kafka)
    told = publisher.announce(producer, registry, None)
    found = read_decisions(task, kafka, lambda: pytest.fail("Kafka answers"))
    assert [d.seq for d in found] == [1, 2]
    came: list[int] = []
    three = threading.Event()

    def watch() -> None:
        for decision in follow(task, kafka):
            came.append(decision.seq)
            if len(came) == 3:
                break
        three.set()

    thread = threading.Thread(target=watch)
    thread.start()
    registry.serve(registry.models()[1], key, "all")
    publisher.announce(producer, registry, told)
    assert three.wait(30)
    thread.join(10)
    assert came == [1, 2, 3]
    producer.close()
