"""Places where the real command runs, with a Kafka of its own or with the embedded broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.launcher import broker
from tests.rig.processes.fleet import Place, without_kafka
from tests.rig.servers.kafka import require, with_kafka


@pytest.fixture
def kafka_place(tmp_path: Path, first_models: Path) -> Iterator[Place]:
    """`tidewheel up` starts a real Kafka here."""
    environ = with_kafka()
    choice = broker.choose(tmp_path / "choice", None, environ)
    require(choice, environ)
    with Place(tmp_path, environ, first_models) as place:
        yield place


@pytest.fixture
def embedded_place(tmp_path: Path, first_models: Path) -> Iterator[Place]:
    environ = without_kafka()
    assert broker.choose(tmp_path / "choice", None, environ).kind == "embedded"
    with Place(tmp_path, environ, first_models) as place:
        yield place
