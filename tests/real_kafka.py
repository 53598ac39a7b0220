"""The real Kafka of the tests: where it is, and what happens where there is none.

Without it most crash tests could not run. They fail wherever a Kafka is promised or Java is there
to run one, and are skipped elsewhere only.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from compose.launcher.broker import BrokerChoice

SHARED = Path(__file__).parents[2] / "shared" / "kafka"
GET_ONE = (
    "unpack a release of Apache Kafka 4 and set KAFKA_HOME to its folder (where a broker is used "
    "and not started: TIDEWHEEL_KAFKA to its address)"
)


def with_kafka(*, address: bool = False) -> dict[str, str]:
    """An environment in which `broker.choose` finds a real Kafka to start, or with `address` also
    one that is named to be used."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWHEEL_")}
    if address and "TIDEWHEEL_KAFKA" in os.environ:
        given["TIDEWHEEL_KAFKA"] = os.environ["TIDEWHEEL_KAFKA"]
    if SHARED.is_dir():
        given.setdefault("KAFKA_HOME", str(SHARED))
    return given


def require(choice: BrokerChoice, environ: Mapping[str, str]) -> None:
    """Fail, or skip the test, unless `choice` is a real Kafka."""
    if choice.kind != "embedded":
        return
    promised = any(environ.get(name) for name in ("TIDEWHEEL_KAFKA", "KAFKA_HOME"))
    if promised or shutil.which("java"):
        pytest.fail(f"needs a real Kafka, but: {choice.why}; {GET_ONE}")
    pytest.skip(f"needs Java and a real Kafka: {GET_ONE}")
