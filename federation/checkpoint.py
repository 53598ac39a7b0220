"""The global weights after each round, so that a run that dies leaves its work behind.

<folder>/<run>/round-0001.safetensors, written whole or not at all; the last KEPT rounds are kept.
"""

from pathlib import Path

import numpy as np
import safetensors.numpy

from streams.contract.disk import write_atomic

KEPT = 2


def save(folder: Path, run: str, number: int, weights: dict[str, np.ndarray]) -> Path:
    path = folder / run / f"round-{number:04d}.safetensors"
    write_atomic(path, safetensors.numpy.save(weights))
    for old in sorted(path.parent.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def latest(folder: Path, run: str) -> tuple[int, dict[str, np.ndarray]] | None:
    """The newest round of `run` and its weights; None when no round was finished."""
    paths = sorted((folder / run).glob("round-*.safetensors"))
    if not paths:
        return None
    number = int(paths[-1].stem.partition("-")[2])
    return number, safetensors.numpy.load(paths[-1].read_bytes())
