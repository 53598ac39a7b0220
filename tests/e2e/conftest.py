"""Places where the real command runs, with a Kafka of its own or with the embedded broker."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.launcher import broker
from tests.rig.processes.fleet import Place, without_kafka
from tests.rig.servers.kafka import require, with_kafka


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained first models: the first test here trains them, the others find them, also those in
    other processes of xdist."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "first-models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def kafka_place(tmp_path: Path, cache: Path) -> Iterator[Place]:
    """`tidewheel up` starts a real Kafka here."""
    environ = with_kafka()
    choice = broker.choose(tmp_path / "choice", None, environ)
    require(choice, environ)
    with Place(tmp_path, environ, cache) as place:
        yield place


@pytest.fixture
def embedded_place(tmp_path: Path, cache: Path) -> Iterator[Place]:
    environ = without_kafka()
    assert broker.choose(tmp_path / "choice", None, environ).kind == "embedded"
    with Place(tmp_path, environ, cache) as place:
        yield place
