"""Brokers for the whole session: a real Kafka, and the embedded one."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from compose.launcher import broker
from streams.kafka.settings import BrokerSettings
from tests.rig.processes import forks
from tests.rig.processes.running import last_words
from tests.rig.servers.kafka import java_options, require, serving, with_kafka
from tests.rig.servers.postgresql import Server, postgresql
from tests.rig.servers.s3 import s3_server
from tests.rig.servers.secure_node import SecureNode

# No test is timed: how long an example takes says how busy the machine is.
settings.register_profile("tidewheel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidewheel")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background, for all children
    signal.signal(signal.SIGINT, signal.default_int_handler)
forks.install()
os.environ.setdefault("KAFKA_OPTS", java_options())


def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Fork the processes of xdist as well: what they import is imported once. Not for coverage,
    which would miss the lines that an import runs."""
    if not config.option.cov_source:
        subprocess.Popen = forks.Forked  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole fleets first. One process of xdist begins with all of them, so that they never run
    side by side, and do not come last, when all others would wait for them. Behind them come the
    tests of the secure node, so that not each process has to start one."""

    def place(item: pytest.Item) -> int:
        if item.nodeid.startswith("tests/e2e/"):
            return 0
        return 1 if "secure_node" in getattr(item, "fixturenames", ()) else 2

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add to a failure what the processes that run have logged, and where they are."""
    report = yield
    if report.when == "call" and report.failed:
        report.sections.append(("stderr of processes", last_words()))
    return report


@pytest.fixture
def executed() -> Iterator[None]:
    """Processes are executed here, not forked: an import that fails is seen."""
    with forks.executed():
        yield


@pytest.fixture(scope="session")
def first_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of trained first models: the first test that needs one trains it, the others find it,
    also those in other processes of xdist."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "first-models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerSettings]:
    """A real Kafka."""
    environ = with_kafka(address=True)
    state = tmp_path_factory.mktemp("kafka")
    choice = broker.choose(state, None, environ)
    require(choice, environ)
    with serving(choice, state, state / "broker.log"):
        yield choice.settings


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerSettings]:
    """The embedded broker, for what must work without a Kafka of one's own."""
    state = tmp_path_factory.mktemp("embedded")
    choice = broker.choose(state, None, {"PATH": ""})
    with serving(choice, state, state / "broker.log"):
        yield choice.settings


@pytest.fixture(scope="session")
def secure_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNode]:
    """A real Kafka of our own with TLS and passwords, and a door that leads through a proxy."""
    node = SecureNode(tmp_path_factory.mktemp("secure"))
    yield node
    node.kill()


@pytest.fixture(scope="session")
def database() -> Iterator[Server]:
    """A PostgreSQL."""
    with postgresql() as server:
        yield server


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
