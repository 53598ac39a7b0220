"""Where a device keeps its active and its previous model version.

The folder holds `<model>.twa` artifact files and `slots.json`, {active, previous}. Installing:

1. verify the bytes (signature, digests, task version) and run the model once
2. write the artifact file (temporary, fsync, rename)
3. write slots.json the same way: from here on the new version is active
4. delete artifacts that are neither active nor previous

A crash before 3 leaves the old version active, a crash after 3 the new one. At open the active
file is verified again; if it is broken, the previous one takes its place.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.inference import Engine
from streams.contract.artifact import Artifact, unpack
from streams.contract.disk import write_atomic
from streams.contract.errors import ArtifactError
from streams.contract.task import Task


class Slots:
    """The two slots of one device."""

    def __init__(self, folder: Path, task: Task, trusted: Sequence[Ed25519PublicKey]) -> None:
        self._folder = folder
        self._task = task
        self._trusted = trusted
        self.active: str | None = None
        self.previous: str | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> Engine | None:
        """The active version, or the previous one where the active one is broken, or None."""
        try:
            state = json.loads((self._folder / "slots.json").read_bytes())
            candidates = [state["active"], state["previous"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        for i, model in enumerate(candidates):
            if not isinstance(model, str):
                continue
            try:
                engine = Engine(self._task, self._verified(self._path(model).read_bytes()))
            except (OSError, ArtifactError):
                continue
            self.active = model
            self.previous = None if i else candidates[1]
            return engine
        return None

    def install(self, data: bytes, digest: str | None = None) -> Engine:
        """Verify and activate an artifact; ArtifactError leaves everything as it was."""
        artifact = self._verified(data, digest)
        engine = Engine(self._task, artifact)
        if artifact.model == self.active:
            return engine
        write_atomic(self._path(artifact.model), data)
        previous = self.active
        state = {"active": artifact.model, "previous": previous}
        write_atomic(self._folder / "slots.json", json.dumps(state).encode())
        self.active, self.previous = artifact.model, previous
        keep = {self._path(model) for model in (self.active, self.previous) if model}
        for path in self._folder.glob("*.twa"):
            if path not in keep:
                path.unlink()
        return engine

    def _verified(self, data: bytes, digest: str | None = None) -> Artifact:
        return unpack(
            data,
            self._trusted,
            task=self._task.name,
            task_version=self._task.version,
            digest=digest,
        )

    def _path(self, model: str) -> Path:
        return self._folder / f"{model}.twa"
