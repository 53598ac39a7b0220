"""A model as people name it: an artifact's file, a version of the registry, or the served one."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from streams.contract.artifact import Artifact, unpack
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task

SERVED = "served"


def named_model(
    task: Task,
    name: str,
    keys: Callable[[], Sequence[Ed25519PublicKey]],
    registry: Callable[[], Registry],
    option: str = "model",
) -> tuple[Artifact, bytes]:
    """Return the named model, verified, and its bytes; raise UsageError if there is none. keys:
    those that a file may be signed with; option: what the name was given as."""
    path = Path(name)
    try:
        if path.is_file():
            data = path.read_bytes()
            return unpack(data, keys(), task=task.name, task_version=task.version), data
        if path.suffix == ".twa":
            raise UsageError(f"{option} {name}: there is no such file")
        known = registry()
        if name == SERVED:
            serving = known.serving()
            if serving is None:
                raise UsageError(
                    f"no model is served in {known.where}: tidewheel prepare, or name a {option}"
                )
            name = serving.model
        data = known.read(name)
        return known.checked(data, name), data
    except (ArtifactError, OSError) as exc:
        raise UsageError(f"{option} {name}: {exc}") from exc
