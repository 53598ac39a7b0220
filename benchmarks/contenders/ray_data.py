"""Ray Data as its documentation has batch inference: `map_batches` with an actor a core."""

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import ray

BATCH = 1024
SHAPE = (6, 128)


class Predictor:
    """One session an actor, on one thread."""

    def __init__(self, model: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        segments = np.stack(batch["segment"]).astype(np.float32).reshape(-1, *SHAPE)
        outputs = self._session.run(None, {self._name: segments})[0]
        return {"id": batch["event"], "outputs": outputs, "class": outputs.argmax(axis=1)}


def main() -> None:
    source, output, model, processes = *sys.argv[1:4], int(sys.argv[4])
    # actors keep a processor each for good: without one more nothing would be left that reads
    ray.init(num_cpus=processes + 1, include_dashboard=False, log_to_driver=False)
    rows = ray.data.read_parquet(source).select_columns(["event", "segment"])
    actors = ray.data.ActorPoolStrategy(size=processes)
    scored = rows.map_batches(
        Predictor, fn_constructor_args=(model,), batch_size=BATCH, compute=actors
    )
    scored.write_parquet(output)


if __name__ == "__main__":
    main()
