"""A Kafka of one's own that can be killed, with a second door that leads through a proxy."""

import os
import signal
import subprocess
from pathlib import Path

from compose.launcher import broker
from streams.kafka.settings import BrokerSettings
from tests.rig.servers.kafka import require, with_kafka

HOST = "127.0.0.1"


class Node:
    """`settings` lead to the broker, `through_proxy` to whoever listens on `proxy_port`; that is to
    pass on to `proxied_port`."""

    def __init__(self, state: Path) -> None:
        environ = with_kafka()
        self._choice = broker.choose(state, None, environ)
        require(self._choice, environ)
        self._state, self._environ = state, environ
        self.settings = self._choice.settings
        self.proxied_port, self.proxy_port, self.closed_port = broker.free_ports(3)
        self.through_proxy = BrokerSettings(bootstrap=f"{HOST}:{self.proxy_port}")
        self.nowhere = BrokerSettings(bootstrap=f"{HOST}:{self.closed_port}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        launch = broker.command(self._choice, self._state)
        properties = Path(launch.argv[1])
        properties.write_text(properties.read_text() + self._doors())
        log = self._state / "broker.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                launch.argv,
                env={**self._environ, **launch.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        broker._wait_until_it_answers(self._choice, self._process, log, 90.0)

    def _doors(self) -> str:
        """What server.properties needs for the second door; the last of two lines counts."""
        plain = f"PLAINTEXT://{self.settings.bootstrap}"
        controller = f"CONTROLLER://{HOST}:{broker._ports(self._state)['controller']}"
        settings = {
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
            "PROXIED:PLAINTEXT",
            "listeners": f"{plain},PROXIED://{HOST}:{self.proxied_port},{controller}",
            "advertised.listeners": f"{plain},PROXIED://{HOST}:{self.proxy_port},{controller}",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
