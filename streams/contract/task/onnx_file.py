"""A task's model as a file of ONNX, which answers and does not learn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streams.contract.errors import TaskError

MAX_BYTES = 1 << 29

NOTHING_LEARNS = "its model is a file of ONNX, which does not learn; `models import` offers another"

Inputs = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OnnxFile:
    """In the place of `build_model` or `build_teacher`: a graph that was trained elsewhere.

    path    the file, of ONNX, or of TorchScript, which is converted; for one beside the task's file
            Path(__file__).with_name("model.onnx")
    before  (n, channels, samples) float32 -> what the graph reads: an array for its first input, or
            arrays by the inputs' names; None: the segments as they are
    after   the graph's outputs by their names -> (n, outputs) float32; None: its first output

    Both are plain functions of numpy, the same on device, worker and in a batch job. Only `prepare`
    and `models import` read the file: what others run is in the signed artifact.

    >>> from tidewheel import OnnxFile
    >>> model = OnnxFile("model.onnx", before=lambda segments: {"input": segments / 9.81})
    >>> model.read()
    Traceback (most recent call last):
    streams.contract.errors.TaskError: cannot read the model model.onnx: No such file or directory
    """

    path: str | Path
    before: Callable[[np.ndarray], Inputs] | None = None
    after: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None

    def read(self) -> bytes:
        """Return the file's bytes; raise TaskError if there are none, or more than MAX_BYTES."""
        try:
            data = Path(self.path).read_bytes()
        except OSError as exc:
            raise TaskError(f"cannot read the model {self.path}: {exc.strerror}") from exc
        if len(data) > MAX_BYTES:
            raise TaskError(f"{self.path} has {len(data):,} bytes, {MAX_BYTES:,} are allowed")
        return data
