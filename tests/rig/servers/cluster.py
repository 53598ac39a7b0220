"""A Kafka of three nodes, each of which may be killed."""

import base64
import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from compose.launcher.broker import HOST, free_ports
from streams.kafka.admin import probe
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until
from tests.rig.processes.running import start

NODES = 3
HEAP = "-Xmx400m -XX:+UseSerialGC"


@dataclass
class Cluster:
    """Nodes 1 to 3, each broker and controller."""

    folder: Path
    home: Path
    ports: list[tuple[int, int]]  # of each node: broker, controller
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> BrokerSettings:
        return BrokerSettings(bootstrap=",".join(f"{HOST}:{broker}" for broker, _ in self.ports))

    def format(self) -> None:
        cluster, directories = _id(), [_id() for _ in self.ports]
        voters = ",".join(
            f"{node}@{HOST}:{port}:{directory}"
            for node, ((_, port), directory) in enumerate(
                zip(self.ports, directories, strict=True), 1
            )
        )
        for node in range(1, NODES + 1):
            path = self._path(node) / "server.properties"
            path.parent.mkdir(parents=True)
            path.write_text(self._properties(node))
            subprocess.run(
                [self.home / "bin" / "kafka-storage.sh", "format", f"--cluster-id={cluster}",
                 "-c", path, "--initial-controllers", voters],
                check=True, capture_output=True,
            )  # fmt: skip

    def start(self, node: int) -> None:
        folder = self._path(node)
        argv = [self.home / "bin" / "kafka-server-start.sh", folder / "server.properties"]
        env = {**os.environ, "KAFKA_HEAP_OPTS": HEAP, "LOG_DIR": str(folder)}
        self.nodes[node] = start(argv, folder / "log", env)

    def kill(self, node: int) -> None:
        self.nodes[node].kill()
        self.nodes.pop(node).wait(10)

    def answers(self, node: int) -> bool:
        broker, _ = self.ports[node - 1]
        return probe(BrokerSettings(bootstrap=f"{HOST}:{broker}"), 1.0)

    def end(self) -> None:
        for node in list(self.nodes):
            self.kill(node)

    def _path(self, node: int) -> Path:
        return self.folder / f"node-{node}"

    def _properties(self, node: int) -> str:
        broker, controller = (f"{HOST}:{port}" for port in self.ports[node - 1])
        quorum = ",".join(f"{HOST}:{port}" for _, port in self.ports)
        settings = {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.bootstrap.servers": quorum,
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self._path(node) / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": NODES,
            "offsets.topic.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _id() -> str:
    return base64.urlsafe_b64encode(b"\x20" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


@contextlib.contextmanager
def three_nodes(folder: Path, home: Path) -> Iterator[Cluster]:
    """A running cluster; its processes are ended on the way out."""
    ports = free_ports(2 * NODES)
    made = Cluster(folder, home, list(zip(ports[::2], ports[1::2], strict=True)))
    made.format()
    try:
        for node in range(1, NODES + 1):
            made.start(node)
        for node in range(1, NODES + 1):
            until(lambda node=node: made.answers(node), f"node {node} answers")  # type: ignore[misc]
        yield made
    finally:
        made.end()
