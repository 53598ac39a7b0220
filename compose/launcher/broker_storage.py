"""The storage and the settings of a Kafka node of our own, which only this machine reaches."""

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from streams.contract.errors import ProcessFailed, UsageError
from streams.runtime.disk import write_atomic

HOST = "127.0.0.1"
PARTITIONS = 4


def format_storage(
    script: Path, folder: Path, ports: Mapping[str, int], env: Mapping[str, str]
) -> None:
    """Format the storage beside its place and rename it, so that a crash leaves none or all."""
    fresh, properties = folder / "data.new", folder / "format.properties"
    shutil.rmtree(fresh, ignore_errors=True)
    write_atomic(properties, properties_of(ports, fresh).encode("ascii"))
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # "=": an identifier that starts with "-" would be taken for a flag.
    argv = [str(script), "format", f"--cluster-id={cluster}", "-c", str(properties), "--standalone"]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode or not fresh.is_dir():
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise ProcessFailed(f"{script} could not format {fresh}: {' '.join(last)}")
    fresh.rename(folder / "data")
    properties.unlink()


def properties_of(ports: Mapping[str, int], data: Path) -> str:
    """server.properties of a single node that only this machine reaches."""
    broker, controller = f"{HOST}:{ports['broker']}", f"{HOST}:{ports['controller']}"
    if "," in str(data):
        raise UsageError(f"Kafka takes no comma in its folder's name: {data}")
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": controller,
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": _escaped(str(data)),
        "num.partitions": PARTITIONS,
        "auto.create.topics.enable": "false",
        "log.cleaner.dedupe.buffer.size": 8_000_000,  # 128 MB, of topics that are never so long
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": PARTITIONS,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": PARTITIONS,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _escaped(text: str) -> str:
    """Text as the value of a Java property, which is Latin-1 with escapes in UTF-16 units."""
    units = text.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)
