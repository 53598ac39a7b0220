"""Places where the real command runs, with a Kafka of its own or with the embedded broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.launcher import broker
from tests.e2e.support import Place, with_kafka, without_kafka


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained first models: the first test here trains them, the others find them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kafka_place(tmp_path: Path, cache: Path) -> Iterator[Place]:
    """`tidewheel up` starts a real Kafka here. Missing it is a failure where one is promised."""
    environ = with_kafka()
    choice = broker.choose(tmp_path / "choice", None, environ)
    if choice.kind != "kafka":
        if "KAFKA_HOME" in environ:
            pytest.fail(f"a real Kafka is promised here, but: {choice.why}")
        pytest.skip("needs a Kafka to start: set KAFKA_HOME")
    with Place(tmp_path, environ, cache) as place:
        yield place


@pytest.fixture
def embedded_place(tmp_path: Path, cache: Path) -> Iterator[Place]:
    environ = without_kafka()
    assert broker.choose(tmp_path / "choice", None, environ).kind == "embedded"
    with Place(tmp_path, environ, cache) as place:
        yield place
