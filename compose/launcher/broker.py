"""Which Kafka is used, and starting one where nobody brought any.

`choose` decides in this order and says why: an address given by the user; a real single KRaft
node where Kafka's scripts and a Java are found; the embedded broker. A broker that we start
listens on the loopback address only and keeps all of its own under `<state>/broker`:

    ports.json                 the ports, chosen free once: a restart has the same address
    server.properties          written again at each start
    data/                      Kafka's log directory; it exists only once it is formatted whole
    embedded/                  the embedded broker's folder
"""

import base64
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streams.contract.errors import ProcessFailed, UsageError
from streams.kafka.settings import BrokerSettings
from streams.runtime.files import write_atomic

HOST = "127.0.0.1"
# A heap that grows only when it must, and C1 alone: a third less CPU and memory for a start.
HEAP = (
    "-Xms48m -Xmx256m -Xss512k -XX:+UseSerialGC -XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=20 "
    "-XX:TieredStopAtLevel=1"
)
# Below the range from which systems pick ports of outgoing connections (32768 on Linux): a port
# from that range could be in use by chance when the broker comes back.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class BrokerChoice:
    """The broker to use; `why` is a line for a person."""

    kind: Literal["external", "kafka", "embedded"]
    settings: BrokerSettings
    why: str
    program: Path | None = None  # Kafka's home, or the embedded broker's command
    java: Path | None = None


@dataclass(frozen=True)
class Launch:
    """A command to run, and what to add to its environment."""

    argv: list[str]
    env: dict[str, str]


def choose(state: Path, kafka: str | None, environ: Mapping[str, str]) -> BrokerChoice:
    """Decide which broker to use; UsageError says what to do when there is none.

    kafka: the value of `--kafka`; environ: the process's environment.
    """
    if address := kafka or environ.get("TIDEWHEEL_KAFKA"):
        why = f"Kafka at {address}, named by " + ("--kafka" if kafka else "TIDEWHEEL_KAFKA")
        return BrokerChoice("external", BrokerSettings.at(address), why)
    home, java = _kafka_home(environ), _java(environ)
    if home and java:
        settings = _local(broker_ports(state)["broker"])
        why = f"a Kafka node of our own at {settings.bootstrap}, from {home}, kept in {state}"
        return BrokerChoice("kafka", settings, why, home, java)
    lacking = f"{home} needs a Java, and there is none on PATH or in JAVA_HOME; " if home else ""
    if command := _embedded_command(environ):
        settings = _local(broker_ports(state)["broker"])
        why = (
            f"{lacking}the embedded broker at {settings.bootstrap}, for trying out only: it keeps "
            "everything in memory and loses acknowledged data when it is killed"
        )
        return BrokerChoice("embedded", settings, why, command)
    raise UsageError(
        f"{lacking}no Kafka: name a cluster with --kafka HOST:PORT, or set KAFKA_HOME to an "
        "unpacked Apache Kafka and install a Java 17, or pip install 'tidewheel[embedded]'"
    )


def _local(port: int) -> BrokerSettings:
    """Settings of a broker of ours: no credentials, whatever the environment holds."""
    return BrokerSettings(bootstrap=f"{HOST}:{port}")


def _kafka_home(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get("KAFKA_HOME"):
        home = Path(named).expanduser().absolute()
        for script in ("kafka-storage.sh", "kafka-server-start.sh"):
            if not (home / "bin" / script).is_file():
                raise UsageError(
                    f"KAFKA_HOME={named} has no bin/{script}: set it to an unpacked Apache Kafka"
                )
        return home
    found = shutil.which("kafka-server-start.sh", path=environ.get("PATH", ""))
    if found is None:
        return None
    folder = Path(found).resolve().parent
    return folder.parent if (folder / "kafka-storage.sh").is_file() else None


def _java(environ: Mapping[str, str]) -> Path | None:
    if home := environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if java.is_file():
            return java
    found = shutil.which("java", path=environ.get("PATH", ""))
    return Path(found) if found else None


def _embedded_command(environ: Mapping[str, str]) -> Path | None:
    beside = Path(sys.executable).parent / "noida-db"  # a virtualenv need not be on PATH
    if beside.is_file():
        return beside
    found = shutil.which("noida-db", path=environ.get("PATH", ""))
    return Path(found) if found else None


def _kept_ports(folder: Path, *names: str) -> dict[str, int]:
    """The ports of a state folder's processes, chosen when they are first asked for."""
    path = folder / "ports.json"
    try:
        known = json.loads(path.read_text())
        return {name: int(known[name]) for name in names}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path} cannot be read ({exc}): remove it to have new ports") from exc
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    try:
        write_atomic(path, json.dumps(ports).encode())
    except OSError as exc:
        raise UsageError(f"the state folder {folder.parent} cannot be written: {exc}") from exc
    return ports


def broker_ports(state: Path) -> dict[str, int]:
    return _kept_ports(state / "broker", "broker", "controller")


def superlink_port(state: Path) -> int:
    """The same each time, as a run that has not started yet names it to devices; another where it
    is taken."""
    folder = state / "flower"
    port = _kept_ports(folder, "superlink")["superlink"]
    if _is_free(port):
        return port
    (folder / "ports.json").unlink()
    return _kept_ports(folder, "superlink")["superlink"]


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nothing uses now, drawn from below those that the system gives to
    outgoing connections, so that none of these takes one before it is bound."""
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    found = [port for _, port in zip(range(count), filter(_is_free, candidates), strict=False)]
    if len(found) < count:
        raise UsageError(f"no free port between {PORTS.start} and {PORTS.stop}")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probed:
        probed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probed.bind((HOST, port))
        except OSError:
            return False
    return True


def command(choice: BrokerChoice, state: Path) -> Launch:
    """What to run for `choice`, after preparing its folder; a real Kafka is formatted once."""
    if choice.program is None:
        raise UsageError(f"{choice.why}: it is not ours to start")
    folder, ports = (state / "broker").absolute(), broker_ports(state)
    _check_ports(folder, ports)
    if choice.kind == "embedded":
        argv = [str(choice.program), "start", "--only", "kafka", "--host", HOST]
        argv += ["--kafka-port", str(ports["broker"]), "--data-dir", str(folder / "embedded")]
        return Launch(argv, {})
    env = {"KAFKA_HEAP_OPTS": HEAP, "LOG_DIR": str(folder / "logs")}
    if choice.java is not None and choice.java.parent.name == "bin":
        env["JAVA_HOME"] = str(choice.java.parent.parent)
    scripts = choice.program / "bin"
    if not (folder / "data").is_dir():
        format_storage(scripts / "kafka-storage.sh", folder, ports, env)
    properties = folder / "server.properties"
    write_atomic(properties, properties_of(ports, folder / "data").encode("ascii"))
    return Launch([str(scripts / "kafka-server-start.sh"), str(properties)], env)


def _check_ports(folder: Path, ports: Mapping[str, int]) -> None:
    for port in ports.values():
        if not _is_free(port):
            raise UsageError(
                f"port {port} of the broker in {folder} is in use: free it, or remove "
                f"{folder / 'ports.json'} to have another"
            )


# --- the storage of a Kafka node of our own ------------------------------------------------------

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
