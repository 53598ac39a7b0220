"""The real Kafka of the tests: where it is, and what happens where there is none.

Without it most crash tests could not run. They fail wherever a Kafka is promised or Java is there
to run one, and are skipped elsewhere only.

Half of what a Kafka of a test costs is the start of Java. `python -m tests.rig.servers.kafka FILE`
writes an archive of the classes of a Kafka that has done some work; by `java_options` every
Kafka maps it, and compiles its code quickly instead of well. It is the same Kafka.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from compose.launcher import broker
from compose.launcher.broker import BrokerChoice
from streams.kafka.admin import probe
from tests.rig.processes import running

SHARED = Path(__file__).parents[4] / "shared" / "kafka"
ARCHIVE = Path(__file__).parents[3] / ".venv" / "kafka.jsa"
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


def java_options(archive: Path = ARCHIVE) -> str:
    """KAFKA_OPTS of the tests."""
    found = f" -XX:SharedArchiveFile={archive}" if archive.exists() else ""
    return f"-XX:TieredStopAtLevel=1{found}"


@contextmanager
def serving(
    choice: BrokerChoice, state: Path, log: Path, timeout_s: float = 60.0
) -> Iterator["subprocess.Popen[bytes] | None"]:
    """Start the chosen broker, wait until it answers, and end it on the way out; yield its process,
    None for one that is not ours."""
    if choice.kind == "external":
        assert probe(choice.settings, timeout_s), choice.why
        yield None
        return
    launch = broker.command(choice, state)
    env = {**os.environ, **launch.env}
    with running.serving(
        launch.argv, log, lambda: probe(choice.settings, 1.0), env, timeout_s
    ) as process:
        yield process


def make_archive(archive: Path) -> None:
    """Write the classes of a Kafka that serves a topic, where there is one to start."""
    environ = with_kafka()
    with tempfile.TemporaryDirectory() as folder:
        state, made = Path(folder), Path(folder) / "made.jsa"
        choice = broker.choose(state, None, environ)
        if choice.kind != "kafka":
            return
        broker.command(choice, state)  # formats, in another Java
        os.environ["KAFKA_OPTS"] = f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={made}"
        with serving(choice, state, state / "broker.log") as process:
            _use(choice.settings.bootstrap)
        if process is not None and process.returncode != -signal.SIGKILL and made.exists():
            shutil.move(made, archive)


def _use(bootstrap: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic("archived", 2, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send("archived", b"value", b"key").get(30)
    producer.close()


if __name__ == "__main__":
    make_archive(Path(sys.argv[1]))
