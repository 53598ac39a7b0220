"""The signed model versions that this server keeps, and which one it serves.

    <folder>/models/<model>.twa    artifacts, see streams.contract.artifact
    <folder>/teacher.twa           the teacher
    <folder>/serving.json          {"model": "<model>"}
    <folder>/heldout.safetensors   central segments and labels that candidates are judged by

Every artifact is verified when it is added and again when it is loaded: what was altered on disk is
an ArtifactError, never a model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.artifact import Artifact, unpack
from streams.contract.disk import write_atomic
from streams.contract.errors import ArtifactError


@dataclass(frozen=True)
class Registry:
    """The artifacts of one task and task version, signed by one of the `trusted` keys."""

    folder: Path
    task: str
    task_version: int
    trusted: Sequence[Ed25519PublicKey]

    @property
    def teacher_path(self) -> Path:
        return self.folder / "teacher.twa"

    @property
    def heldout_path(self) -> Path:
        return self.folder / "heldout.safetensors"

    def verify(self, data: bytes, kind: str = "model") -> Artifact:
        return unpack(data, self.trusted, task=self.task, task_version=self.task_version, kind=kind)

    def add(self, data: bytes) -> Artifact:
        """Keep a model version; ArtifactError, and nothing is kept, when it does not verify."""
        artifact = self.verify(data)
        write_atomic(self._path(artifact.model), data)
        return artifact

    def add_teacher(self, data: bytes) -> Artifact:
        artifact = self.verify(data, kind="teacher")
        write_atomic(self.teacher_path, data)
        return artifact

    def teacher(self) -> Artifact | None:
        """The teacher that the workers are offered; None before there is one."""
        if not self.teacher_path.exists():
            return None
        return self.verify(self.teacher_path.read_bytes(), kind="teacher")

    def read(self, model: str) -> bytes:
        """The bytes of a kept version, as they were added."""
        try:
            return self._path(model).read_bytes()
        except OSError as exc:
            raise ArtifactError("missing", f"no model {model} in {self.folder}: {exc}") from exc

    def load(self, model: str) -> Artifact:
        artifact = self.verify(self.read(model))
        if artifact.model != model:
            raise ArtifactError("name", f"{self._path(model)} holds model {artifact.model}")
        return artifact

    def serving(self) -> Artifact | None:
        """The version that the fleet is offered; None before the first."""
        path = self.folder / "serving.json"
        try:
            model = json.loads(path.read_text())["model"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ArtifactError("serving", f"{path} names no model: {exc!r}") from exc
        return self.load(str(model))

    def set_serving(self, model: str) -> None:
        """Serve a kept version, which is verified first."""
        self.load(model)
        write_atomic(self.folder / "serving.json", json.dumps({"model": model}).encode())

    def models(self) -> list[str]:
        """Kept versions, oldest first; the files are not read."""
        found = [path.stem for path in (self.folder / "models").glob("[0-9]*-*.twa")]
        return sorted(found, key=_number)

    def next_number(self) -> int:
        """One more than any version has ever had here."""
        return max((_number(model) for model in self.models()), default=0) + 1

    def _path(self, model: str) -> Path:
        if not model.replace("-", "").isalnum():
            raise ArtifactError("name", f"{model!r} is no model version's name")
        return self.folder / "models" / f"{model}.twa"


def _number(model: str) -> int:
    number = model.partition("-")[0]
    return int(number) if number.isdecimal() else 0
