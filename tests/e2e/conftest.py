"""Places where the real command runs, with a Kafka of its own or with the embedded broker."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add to a failure what the processes of its place have logged, and where they are."""
    report = yield
    for place in getattr(item, "funcargs", {}).values():
        if isinstance(place, Place) and report.when == "call" and report.failed:
            place.show_stacks()
            time.sleep(1.0)  # they write
            report.sections.append(("stderr of the place", place.logs()))
    return report
