"""Local layers: with `Training.shared`, the tensors outside of it stay on the device.

The fleet shares the body, each device has its own head (FedPer: Arivazhagan et al. 2019, arXiv
1912.00818). A training starts from the received body and the head of the last training; the head is
not sent. Received weights are evaluated with the base's head, because a release is served as it is.
The personal model (`Training.personal`) is trained from the local head.

The file own.safetensors (0600) is replaced atomically after each training; on a full disk the old
one stays. A file that is unreadable or of another model is ignored: training starts from the
received head.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from streams.contract.task import Task, is_local
from streams.runtime.files import write_atomic

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]


def read(task: Task, path: Path, received: Tensors) -> dict[str, np.ndarray]:
    """Return the local layers; none if all are shared or none were saved yet."""
    names = _local_names(task, received)
    if not names or not path.exists():
        return {}
    try:
        found = safetensors.numpy.load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as exc:
        log.warning("%s is ignored: %s", path, exc)
        return {}
    fits = set(found) == names and all(
        found[n].shape == received[n].shape and found[n].dtype == received[n].dtype for n in names
    )
    return found if fits else {}


def save(task: Task, path: Path, trained: Tensors) -> None:
    """Save the local layers, where there are some."""
    names = _local_names(task, trained)
    if names:
        data = safetensors.numpy.save({n: trained[n] for n in names})
        try:
            write_atomic(path, data, mode=0o600)
        except OSError as exc:  # a full disk does not prevent training
            log.warning("%s was not written: %s", path, exc)


def _local_names(task: Task, tensors: Tensors) -> set[str]:
    return {name for name in tensors if is_local(name, task.training)}
