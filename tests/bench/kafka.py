"""The broker of a benchmark: a real Kafka, which runs as long as it is measured with."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compose.launcher import broker
from streams.kafka.settings import BrokerSettings

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "kafka"


@dataclass(frozen=True)
class Kafka:
    """Where it is, which one it is, and its process, where it is ours."""

    settings: BrokerSettings
    name: str
    pid: int | None


@contextmanager
def real_kafka(folder: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Kafka]:
    """As TIDEWHEEL_KAFKA or KAFKA_HOME names it; its data lie in `folder`."""
    environ = dict(environ)
    if SHARED.is_dir():
        environ.setdefault("KAFKA_HOME", str(SHARED))
    state = folder / "state"
    choice = broker.choose(state, None, environ)
    if choice.kind == "embedded":
        raise SystemExit("the benchmark needs a real Kafka: set KAFKA_HOME or TIDEWHEEL_KAFKA")
    name = "a Kafka at TIDEWHEEL_KAFKA"
    if choice.program is not None:
        jar = next((choice.program / "libs").glob("kafka_*.jar"), None)
        name = f"Apache Kafka {jar.stem.rpartition('-')[2]}" if jar else "Apache Kafka"
    with broker.running(choice, state, folder / "broker.log") as process:
        yield Kafka(choice.settings, name, process.pid if process is not None else None)
