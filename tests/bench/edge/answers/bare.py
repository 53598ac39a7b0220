"""The call that the agent is measured against: onnxruntime as its documentation has it.

The same graph with the same weights in it, one thread, all of onnxruntime's optimizers; its input
is a segment as the agent's loop gets it, its output the array that onnxruntime returns.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort


def bare_call(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    """segment (channels, samples) -> (1, outputs)"""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(segment: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: segment[None]})[0])

    return call
