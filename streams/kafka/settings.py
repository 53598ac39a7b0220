"""Kafka connection settings, shared by all clients, and settings that are read from environment
variables or from the secrets of a container."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from msgspec import Meta

from streams.contract.decisions import MAX_BYTES
from streams.contract.documents import Document, problem
from streams.contract.errors import UsageError

SECRETS = Path("/run/secrets")  # of a container


class FromEnvironment(Document, forbid_unknown_fields=True):
    """Settings with `read`, which looks for the fields that it is not given: each in the variable
    that VARIABLES names, or PREFIX and the field's name in capitals; else in the secret of that
    name in small letters; else it has its default."""

    PREFIX: ClassVar[str]
    VARIABLES: ClassVar[dict[str, str]] = {}

    @classmethod
    def read(cls, **given: Any) -> Self:
        """Raise UsageError for a setting that cannot be right, by the variable's name."""
        variables = {n: cls.VARIABLES.get(n, cls.PREFIX + n.upper()) for n in cls.__struct_fields__}
        found: dict[str, Any] = {}
        for name, variable in variables.items():
            secret = SECRETS / variable.lower()
            if variable in os.environ:
                found[name] = os.environ[variable]
            elif secret.is_file():
                found[name] = secret.read_text().strip()
        try:
            return msgspec.convert({**found, **given}, cls, strict=False)
        except msgspec.ValidationError as exc:
            name, _, text = problem(exc).removeprefix("document: ").partition(": ")
            raise UsageError(f"{variables.get(name, name)}: {text}") from exc


def check_readable(settings: FromEnvironment, *names: str) -> None:
    """Raise ValueError for the first field whose file cannot be read."""
    for name in names:
        path = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ValueError(f"{name}: {path} is not a readable file")


class BrokerSettings(FromEnvironment):
    """Address and security settings of Kafka, and the copies of topics that we create.

    `bootstrap` (HOST:PORT, comma separated) is read from TIDEWHEEL_KAFKA, every other field from
    TIDEWHEEL_KAFKA_<FIELD>, or in a container from /run/secrets/tidewheel_kafka_<field>.
    replication, min_insync: None for what the cluster can give. artifact_mb: the largest version
    that is put on `artifacts`.
    """

    PREFIX: ClassVar[str] = "TIDEWHEEL_KAFKA_"
    VARIABLES: ClassVar[dict[str, str]] = {"bootstrap": "TIDEWHEEL_KAFKA"}

    bootstrap: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: str | None = None
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    replication: Annotated[int, Meta(ge=1)] | None = None
    min_insync: Annotated[int, Meta(ge=1)] | None = None
    artifact_mb: Annotated[int, Meta(ge=1, le=MAX_BYTES // 1_000_000)] = 256

    def __post_init__(self) -> None:
        for name in ("username", "password") if self.sasl else ():
            if not getattr(self, name):
                raise ValueError(f"{name}: is needed for {self.security_protocol}")
        check_readable(self, "cafile", "certfile", "keyfile")

    @classmethod
    def at(cls, bootstrap: str | None = None) -> Self:
        """Return what the environment says, with another address if one is given; raise UsageError
        as `read`."""
        return cls.read(bootstrap=bootstrap) if bootstrap else cls.read()

    @property
    def artifact_bytes(self) -> int:
        return 1_000_000 * self.artifact_mb

    @property
    def sasl(self) -> bool:
        return self.security_protocol.startswith("SASL")

    def client_options(self) -> dict[str, Any]:
        """The settings as kafka-python's keyword arguments."""
        options = {
            "bootstrap_servers": self.bootstrap.replace(" ", ""),
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism or ("PLAIN" if self.sasl else None),
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
            "ssl_cafile": self.cafile,
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
        }
        return {name: value for name, value in options.items() if value is not None}
