"""A device with a clock in it: `python -m benchmarks.support.device_process OUT MODEL WORDS...`

It is `tidewheel WORDS` (an `edge run`), until SIGTERM. Each segment is answered by the agent and by
a bare call of onnxruntime with the same weights on one thread; the one that comes first is timed:
three of four times the agent's. So each is the first call after a pause in which the processor
forgets, and both see the same machine. OUT gets rows of CLOCK_MONOTONIC, whether it is the bare
call, and seconds, as a numpy file.
"""

import itertools
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

BARE_EVERY = 4


def answers(out: Path, model: Path, words: list[str]) -> None:
    import onnxruntime as ort

    from compose.cli.main import main
    from edge_client.inference.loop import InferenceLoop
    from edge_client.sources.cuts import Cut

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, timed, turns = session.get_inputs()[0].name, array("d"), itertools.count(1)
    answer, clock = InferenceLoop.answer, time.perf_counter

    def measured(loop: InferenceLoop, cut: Cut) -> None:
        def bare() -> None:
            session.run(None, {name: cut.segment[None]})

        is_bare, at = next(turns) % BARE_EVERY == 0, time.monotonic()
        both: list[Callable[[], None]] = [lambda: answer(loop, cut), bare]
        first, second = reversed(both) if is_bare else both
        began = clock()
        first()
        timed.extend((at, is_bare, clock() - began))
        second()

    InferenceLoop.answer = measured  # type: ignore[assignment, method-assign]
    sys.argv = ["tidewheel", *words]
    try:
        main()
    finally:
        np.save(out, np.array(timed).reshape(-1, 3))


if __name__ == "__main__":
    answers(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
