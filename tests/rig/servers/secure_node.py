"""A real Kafka node with every way in that a cluster may have, and the certificates for it.

plain     no TLS, no password: what the tests themselves use
tls       TLS, and the client must have a certificate
password  TLS and SASL; settings for PLAIN are `plain-password`, those for SCRAM-SHA-512
          `scram-password`
proxied   as `plain`, but the broker tells clients to come to another port: a proxy's
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from compose.launcher import broker
from streams.kafka.admin import probe
from streams.kafka.settings import BrokerSettings
from tests.rig.processes import running
from tests.rig.servers.kafka import require, with_kafka

PASSWORD = "correct horse"
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """Signs certificates; `cafile` is its own."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, name: str) -> "Authority":
        folder.mkdir()
        made = cls(folder)
        made._certify("ca", name)
        return made

    @property
    def cafile(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate for 127.0.0.1 and of its key."""
        fields = (f"subjectAltName=IP:{HOST}", "basicConstraints=CA:FALSE",
                  "extendedKeyUsage=serverAuth,clientAuth")  # fmt: skip
        more = [word for field in fields for word in ("-addext", field)]
        self._certify(name, name, "-CA", self.cafile, "-CAkey", self.folder / "ca.key", *more)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _certify(self, file: str, subject: str, *more: str | Path) -> None:
        command: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-noenc", "-days", "2", "-subj"]
        command += [f"/CN={subject}", "-keyout", self.folder / f"{file}.key"]
        command += ["-out", self.folder / f"{file}.pem", *more]
        subprocess.run(command, check=True, capture_output=True)


class SecureNode:
    """Where the node's doors are, and what opens them; it can be killed and started again."""

    def __init__(self, state: Path) -> None:
        self._environ = with_kafka()
        self._choice = broker.choose(state, None, self._environ)
        require(self._choice, self._environ)
        self._state = state
        plain = int(self._choice.settings.bootstrap.rpartition(":")[2])
        tls, password, proxied, self.proxy_port = broker.free_ports(4)
        self.ports = {"plain": plain, "tls": tls, "password": password, "proxied": proxied}
        self.authority = Authority.create(state / "authority", "authority")
        self.stranger = Authority.create(state / "stranger", "stranger")  # whom nobody trusts
        self.start()
        _create_user(self)

    def start(self) -> None:
        launch = broker.command(self._choice, self._state)
        properties = Path(launch.argv[1])
        properties.write_text(properties.read_text() + _doors(self, self._state))
        log = self._state / "broker.log"
        self._process = running.start(launch.argv, log, {**self._environ, **launch.env})
        answers = partial(probe, self._choice.settings, 1.0)
        running.await_answer(self._process, log, answers, 90.0)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def settings(self, door: str, **fields: str | None) -> BrokerSettings:
        """Settings for a door; `fields` replace or add some."""
        user, _, with_password = door.partition("-")
        port = self.ports["password" if with_password else door]
        given: dict[str, str | None] = {"bootstrap": f"{HOST}:{port}"}
        if door == "tls" or with_password:
            given["cafile"] = str(self.authority.cafile)
        if door == "tls":
            certfile, keyfile = map(str, self.authority.issue("client"))
            given |= {"security_protocol": "SSL", "certfile": certfile, "keyfile": keyfile}
        if with_password:
            given["sasl_mechanism"] = "PLAIN" if user == "plain" else "SCRAM-SHA-512"
            given |= {"security_protocol": "SASL_SSL", "username": user, "password": PASSWORD}
        return BrokerSettings.of_fields(given | fields)


def _doors(node: SecureNode, state: Path) -> str:
    """What server.properties needs beyond a plain node's own; the last of two lines counts."""
    certfile, keyfile = node.authority.issue("broker")
    keystore = certfile.with_name("keystore.pem")
    keystore.write_bytes(keyfile.read_bytes() + certfile.read_bytes())
    protocols = {"tls": "SSL", "password": "SASL_SSL", "proxied": "PLAINTEXT"}
    doors = {name: f"{HOST}:{node.ports[name]}" for name in protocols}
    told = doors | {"proxied": f"{HOST}:{node.proxy_port}"}
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
    settings = {
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
        + ",".join(f"{name.upper()}:{protocol}" for name, protocol in protocols.items()),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(node.authority.cafile),
        "listener.name.tls.ssl.client.auth": "required",
        "listener.name.password.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.password.plain.sasl.jaas.config": f"{plain} required "
        f'user_plain="{PASSWORD}";',
        "listener.name.password.scram-sha-512.sasl.jaas.config": f"{scram} required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
        "auto.create.topics.enable": "true",  # Kafka's default
    }
    controller = f"CONTROLLER://{HOST}:{broker.broker_ports(state)['controller']}"
    plainly = f"PLAINTEXT://{HOST}:{node.ports['plain']}"
    for name, addresses in (("listeners", doors), ("advertised.listeners", told)):
        more = [f"{door.upper()}://{address}" for door, address in addresses.items()]
        settings[name] = ",".join([plainly, *more, controller])
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _create_user(node: SecureNode) -> None:
    admin = KafkaAdminClient(bootstrap_servers=f"{HOST}:{node.ports['plain']}")
    mechanism = ScramMechanism.SCRAM_SHA_512
    made = admin.alter_user_scram_credentials(
        [UserScramCredentialUpsertion("scram", mechanism, PASSWORD)]
    )
    admin.close()
    assert made == {"scram": None}
