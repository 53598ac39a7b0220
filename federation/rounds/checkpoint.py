"""The checkpoint of a run after a round, from which another run can resume.

<folder>/<run>/round-<4 digits>.safetensors, replaced atomically; the last KEPT are kept. Round 0 is
the start of a run.

    weights.<name>   the global weights after the round
    server.<name>    the state of the server's optimizer, if it has one
    metadata         checkpoint: `About` as JSON; sha256: hex, of that JSON and the digest of the
                     tensors (`federation.admission.digest`)

A run has no random state except its seed: random choices are derived from the seed and the round's
number. Nothing is unpickled; a file with a wrong digest is ignored.

Settings that affect the result come from the earlier run; how long to wait, and for how many nodes,
from the run that resumes it.

During a run weights are on disk in place of memory, too (`park`).
"""

import hashlib
import json
import logging
import mmap
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from federation.admission import Quarantine, Tensors, Weights, digest
from streams.contract.documents import Count, Document
from streams.contract.errors import MalformedRecord
from streams.runtime.files import write_atomic

log = logging.getLogger(__name__)

KEPT = 2
WEIGHTS, SERVER = "weights.", "server."


class Lasting(Document, forbid_unknown_fields=True):
    """The settings of a run that its result depends on."""

    rounds: int
    epochs: int
    learning_rate: float
    margin: float
    seed: int


class About(Document, forbid_unknown_fields=True):
    """The metadata.

    norms: of the updates admitted so far; node_of: the node that first trained under a device's
    name; strategy: whose state `server` is; conduct: the quarantine.
    """

    format: Literal[1] = 1
    run: str
    resumed_from: str = ""
    round: Count
    task: str
    task_version: int
    base: str
    settings: Lasting
    counts: dict[str, int] = {}
    norms: list[float] = []
    node_of: dict[str, int] = {}
    strategy: str = ""
    conduct: Quarantine = Quarantine()


@dataclass(frozen=True)
class Checkpoint:
    about: About
    weights: Tensors
    server: Tensors = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and delete all but the last KEPT of its run."""
    about = checkpoint.about
    path = folder / about.run / f"round-{about.round:04d}.safetensors"
    write_atomic(path, encode(checkpoint), mode=0o600)  # a private run's has a secret
    for old in sorted(path.parent.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def latest(folder: Path, run: str) -> Checkpoint | None:
    """Return the newest valid checkpoint of `run`; None if there is none."""
    for path in sorted((folder / run).glob("round-*.safetensors"), reverse=True):
        try:
            found = decode(path.read_bytes())
            if (found.about.run, f"round-{found.about.round:04d}") != (run, path.stem):
                raise MalformedRecord("checkpoint", "it is of another run or round")
        except (MalformedRecord, OSError) as exc:
            log.warning("%s is ignored: %s", path, exc)
            continue
        return found
    return None


def encode(checkpoint: Checkpoint) -> bytes:
    tensors = {WEIGHTS + name: value for name, value in checkpoint.weights.items()}
    tensors |= {SERVER + name: value for name, value in checkpoint.server.items()}
    text = checkpoint.about.encode().decode()
    metadata = {"checkpoint": text, "sha256": _sha256(text, tensors)}
    return safetensors.numpy.save(tensors, metadata=metadata)


def decode(data: bytes) -> Checkpoint:
    """Return the checkpoint; raise MalformedRecord if it is invalid."""
    try:
        tensors = safetensors.numpy.load(data)  # checks lengths and offsets
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text, sha256 = metadata["checkpoint"], metadata["sha256"]
    except (SafetensorError, KeyError, ValueError, TypeError) as exc:
        raise MalformedRecord("checkpoint", f"not a checkpoint: {exc!r}"[:300]) from exc
    if sha256 != _sha256(text, tensors):
        raise MalformedRecord("checkpoint", "its digest does not match")
    weights, server = _part(tensors, WEIGHTS), _part(tensors, SERVER)
    if len(weights) + len(server) != len(tensors):
        raise MalformedRecord("checkpoint", "it has tensors that are neither weights nor server's")
    return Checkpoint(About.decode(text.encode()), weights, server)


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    return {n.removeprefix(prefix): tensors[n] for n in sorted(tensors) if n.startswith(prefix)}


def _sha256(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    return hashlib.sha256((text + digest(tensors)).encode()).hexdigest()


# --- resuming ---


def find(
    runs: Path,
    run: str,
    task: tuple[str, int],
    base: str,
    first: Mapping[str, np.ndarray],
    strategy: str,
) -> Checkpoint | str:
    """Return the newest valid checkpoint of `run`, or why it cannot be resumed.

    task: name and version; base: the served model, `first` its weights.
    """
    found = latest(runs, run)
    if found is None:
        return f"run {run} has no valid checkpoint"
    about = found.about
    if (about.task, about.task_version) != task:
        name, version = task
        return f"run {run} was of {about.task} version {about.task_version}, not {name} {version}"
    if about.base != base:
        return f"run {run} started from {about.base}, but {base} is served now"
    if about.strategy != strategy:
        return f"run {run} used {about.strategy}, this one uses {strategy}"
    shapes = [{n: (v.shape, v.dtype) for n, v in w.items()} for w in (found.weights, first)]
    if shapes[0] != shapes[1]:
        return f"the weights of run {run} do not fit {base}"
    return found


# --- weights of a round ---------------------------------------------------------------------------


def park(tensors: Weights, folder: Path | None) -> Tensors:
    """Return the tensors as read-only views of a file in `folder`; in memory without a folder, and
    where the disk is full."""
    if folder is None or not any(tensor.nbytes for tensor in tensors.values()):
        return dict(tensors)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            places = {}
            for name, tensor in tensors.items():
                places[name] = file.tell()
                file.write(np.ascontiguousarray(tensor).data)
                file.write(bytes(-file.tell() % 8))  # each begins at a multiple of its item's size
            file.flush()
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return dict(tensors)
    return {
        name: np.frombuffer(view, tensor.dtype, tensor.size, places[name]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
