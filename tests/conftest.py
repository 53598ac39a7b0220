"""Brokers for the whole session: a real Kafka, and the embedded one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.launcher import broker
from streams.contract.errors import UsageError
from streams.kafka.settings import BrokerSettings
from tests.secure_node import SecureNode, running
from tests.servers import s3_server

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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 API."""
    with s3_server() as address:
        yield address


@pytest.fixture
def s3_environ(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """How s3fs and everybody else finds it, here and in processes that are started; there is an
    empty bucket `models`."""
    import fsspec
    import s3fs

    settings = {"ENDPOINT_URL": s3, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = fsspec.filesystem("s3")
    if not files.exists("models"):
        files.mkdir("models")
    yield
    if files.exists("models"):
        files.rm("models", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
