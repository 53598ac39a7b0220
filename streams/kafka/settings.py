"""Kafka connection settings, shared by all clients, and settings that are read from environment
variables or from the secrets of a container."""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streams.contract.decisions import MAX_BYTES
from streams.contract.errors import UsageError

SECRETS = Path("/run/secrets")  # of a container


class FromEnvironment(BaseModel):
    """A frozen model that reads the fields that it is not given: each from the variable that is
    its alias, or PREFIX and the field's name in capitals; else from the secret of that name in
    small letters; else it has its default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )
    PREFIX: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            variable = str(field.validation_alias or f"{cls.PREFIX}{name.upper()}")
            secret = SECRETS / variable.lower()
            if name in given or variable in given:
                continue
            if variable in os.environ:
                found[name] = os.environ[variable]
            elif secret.is_file():
                found[name] = secret.read_text().strip()
        return {**found, **given}


class BrokerSettings(FromEnvironment):
    """Address and security settings of Kafka, and the copies of topics that we create.

    `bootstrap` (HOST:PORT, comma separated) is read from TIDEWHEEL_KAFKA, every other field from
    TIDEWHEEL_KAFKA_<FIELD>, or in a container from /run/secrets/tidewheel_kafka_<field>.
    replication, min_insync: None for what the cluster can give. artifact_mb: the largest version
    that is put on `artifacts`.
    """

    model_config = ConfigDict(validate_default=True)  # to detect a missing user
    PREFIX: ClassVar[str] = "TIDEWHEEL_KAFKA_"

    bootstrap: str = Field("127.0.0.1:9092", validation_alias="TIDEWHEEL_KAFKA")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: str | None = None
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    replication: int | None = Field(None, ge=1)
    min_insync: int | None = Field(None, ge=1)
    artifact_mb: int = Field(256, ge=1, le=MAX_BYTES // 1_000_000)

    @field_validator("username", "password")
    @classmethod
    def _given_for_sasl(cls, value: str | None, info: ValidationInfo) -> str | None:
        protocol = str(info.data.get("security_protocol"))
        if protocol.startswith("SASL") and not value:
            raise ValueError(f"is needed for {protocol}")
        return value

    @field_validator("cafile", "certfile", "keyfile")
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"{value} is not a readable file")
        return value

    @classmethod
    def at(cls, bootstrap: str | None = None) -> Self:
        """Return what the environment says, with another address if one is given; raise
        UsageError for a setting that cannot be right."""
        try:
            return cls.model_validate({"bootstrap": bootstrap} if bootstrap else {})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            name = "_".join(str(part) for part in first["loc"]).upper()
            raise UsageError(f"TIDEWHEEL_KAFKA_{name}: {first['msg']}") from exc

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
