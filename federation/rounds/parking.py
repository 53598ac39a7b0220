"""Weights on disk in place of memory: views of a file without a name, which the kernel reads back
when one is used, and which is gone with the last view or the process."""

import mmap
import tempfile
from pathlib import Path

import numpy as np

from federation.admission import Tensors, Weights


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
