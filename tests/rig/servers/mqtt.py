"""An MQTT broker for tests: amqtt as a process of its own, on the loopback address."""

import json
import subprocess
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from compose.launcher.broker import free_ports
from tests.rig.processes.running import await_answer, start
from tests.rig.servers.s3 import listens, servers_python
from tests.rig.servers.secure_node import Authority


class MqttBroker:
    """Listens on a port that stays the same when it is started again."""

    def __init__(
        self,
        folder: Path,
        user: str | None = None,
        password: str = "",
        *,
        authority: Authority | None = None,
    ) -> None:
        """With an authority it speaks TLS, with a user it lets nobody else in."""
        [self.port] = free_ports(1)
        self._python, self._folder = servers_python(), folder
        self._user, self._password = user, password
        self._process: subprocess.Popen[bytes] | None = None
        plugin: tuple[str, dict[str, object]] = "AnonymousAuthPlugin", {"allow_anonymous": True}
        if user is not None:
            file = folder / "passwords"
            file.write_text(f"{user}:{self._hashed(password)}\n")
            plugin = "FileAuthPlugin", {"password_file": str(file)}
        plugins = {f"amqtt.plugins.authentication.{plugin[0]}": plugin[1]}
        listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        self._cafile = authority.cafile if authority is not None else None
        if authority is not None:
            certificate, key = authority.issue("mqtt")
            listener |= {"ssl": True, "certfile": str(certificate), "keyfile": str(key)}
        config = {"listeners": {"default": listener}, "plugins": plugins}
        (folder / "amqtt.yaml").write_text(json.dumps(config))  # JSON is YAML

    def _hashed(self, password: str) -> str:
        code = "from pwdlib.hashers.argon2 import Argon2Hasher as H; print(H().hash(input()))"
        command = [self._python, "-c", code]
        done = subprocess.run(command, input=password, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def start(self) -> None:
        program, log = Path(self._python).parent / "amqtt", self._folder / "amqtt.log"
        self._process = start([program, "-c", self._folder / "amqtt.yaml"], log)
        await_answer(self._process, log, lambda: listens(self.port), 30.0)

    @property
    def log(self) -> str:
        return (self._folder / "amqtt.log").read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def publish(self, topic: str, payloads: list[bytes], *, retain: bool = False) -> None:
        """Send messages, in order, and wait until the broker has each."""
        client = paho.Client(CallbackAPIVersion.VERSION2)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._cafile is not None:
            client.tls_set(ca_certs=str(self._cafile))
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        try:
            for payload in payloads:
                client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10.0)
        finally:
            client.disconnect()
            client.loop_stop()
