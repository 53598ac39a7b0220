"""Brokers for the whole session: a real Kafka, and the embedded one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose import broker
from streams.contract.bus import BrokerSettings
from streams.contract.errors import UsageError
from tests.secure_node import SecureNode, running

SHARED = Path(__file__).parents[2] / "shared" / "kafka"


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerSettings]:
    """A real Kafka. Missing it is a failure wherever the machine claims to have one."""
    environ = dict(os.environ)
    if SHARED.is_dir():
        environ.setdefault("KAFKA_HOME", str(SHARED))
    state = tmp_path_factory.mktemp("kafka")
    promised = any(environ.get(name) for name in ("TIDEWHEEL_KAFKA", "KAFKA_HOME"))
    try:
        choice = broker.choose(state, None, environ)
    except UsageError as exc:
        if promised:
            raise
        pytest.skip(str(exc))
    if choice.kind == "embedded":
        if promised:
            pytest.fail(f"a real Kafka is promised here, but: {choice.why}")
        pytest.skip("needs a real Kafka: set KAFKA_HOME or TIDEWHEEL_KAFKA")
    with broker.running(choice, state, state / "broker.log"):
        yield choice.settings


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerSettings]:
    """The embedded broker, for what must work without a Kafka of one's own."""
    state = tmp_path_factory.mktemp("embedded")
    choice = broker.choose(state, None, {"PATH": ""})
    with broker.running(choice, state, state / "broker.log"):
        yield choice.settings


@pytest.fixture(scope="session")
def secure_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNode]:
    """A real Kafka of our own with TLS and passwords, and a door that leads through a proxy."""
    environ = {name: text for name, text in os.environ.items() if name != "TIDEWHEEL_KAFKA"}
    if SHARED.is_dir():
        environ.setdefault("KAFKA_HOME", str(SHARED))
    if "KAFKA_HOME" not in environ:
        pytest.skip("needs a Kafka to start: set KAFKA_HOME")
    with running(tmp_path_factory.mktemp("secure"), environ) as node:
        yield node
