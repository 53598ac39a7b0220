"""What a device keeps of a model for itself: with `Training.shared`, the tensors outside of it.

The body is the fleet's, the head the device's own (FedPer: Arivazhagan et al. 2019, arXiv
1912.00818). Each training begins with the body received and the head that the last training left;
of the head the server gets back what it sent. What the server sends is evaluated as it is, since a
release is served as it is; a device's copy of one (`Training.personal`) is trained from its own
head.

The file own.safetensors (0600) is written whole or not at all after each training; on a full disk
the one before stays. One that cannot be read, or is of another model, is passed over: the head
received is as good as any to begin with.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from streams.contract.task import Task, is_under
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]


def read(task: Task, path: Path, received: Tensors) -> dict[str, np.ndarray]:
    """The device's own tensors; none where all are shared, or it has none yet."""
    names = _local_names(task, received)
    if not names or not path.exists():
        return {}
    try:
        found = safetensors.numpy.load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as exc:
        log.warning("%s is passed over: %s", path, exc)
        return {}
    fits = set(found) == names and all(
        found[n].shape == received[n].shape and found[n].dtype == received[n].dtype for n in names
    )
    return found if fits else {}


def save(task: Task, path: Path, trained: Tensors, received: Tensors) -> dict[str, np.ndarray]:
    """Write the device's own tensors down; what may leave: `trained`, with those as received."""
    names = _local_names(task, received)
    if names:
        data = safetensors.numpy.save({n: trained[n] for n in names})
        try:
            write_atomic(path, data, mode=0o600)
        except OSError as exc:  # a full disk is no reason not to train
            log.warning("%s is not written: %s", path, exc)
    return {name: received[name] if name in names else value for name, value in trained.items()}


def _local_names(task: Task, tensors: Tensors) -> set[str]:
    return {name for name in tensors if not is_under(name, task.training.shared)}
