"""Settings that are read from environment variables, or from the secrets of a container."""

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

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
