"""A task's model as a file of ONNX, which answers and does not learn."""

from collections.abc import Callable, Mapping, Sequence
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

    def inputs(self, segments: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return what a graph with these inputs reads of segments; raise TaskError if `before`
        fails, or gives others."""
        given: Inputs = segments
        if self.before is not None:
            try:
                given = self.before(segments)
            except Exception as exc:  # the user's code
                raise TaskError(f"`before` fails: {type(exc).__name__}: {exc}") from exc
        found = dict(given) if isinstance(given, Mapping) else {names[0]: given}
        if found.keys() != set(names):
            raise TaskError(
                f"its inputs are {', '.join(names)}; OnnxFile's `before` must give an array for "
                f"each, now there is {', '.join(found) or 'none'}"
            )
        return found

    def answers(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the answers of a graph's outputs by name, float32 in C order, whatever view
        `after` returns; raise TaskError if it fails."""
        try:
            found = next(iter(outputs.values())) if self.after is None else self.after(outputs)
            return np.asarray(found, np.float32, order="C")
        except Exception as exc:  # the user's code
            says = f"{type(exc).__name__}: {exc}; the outputs are {', '.join(outputs)}"
            raise TaskError(f"`after` fails: {says}") from exc
