"""A ServerApp as Flower's own examples have it; it writes down when each round ended, and how good
its model is on the people held out."""

import json
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from streams.contract.task import load_task
from streams.learning import learning

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    task, nodes = load_task(str(config["task"])), int(config["nodes"])
    first = safetensors.numpy.load(Path(str(config["weights"])).read_bytes())
    held = safetensors.numpy.load(Path(str(config["heldout"])).read_bytes())
    model = learning.build_model(task)

    def evaluated(number: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        right = task.correct(learning.predict(model, held["segments"]), held["labels"])
        told = {"round": number, "at": time.time(), "held_out": float(right.mean())}
        with Path(str(config["times"])).open("a") as out:
            out.write(json.dumps(told) + "\n")
        return MetricRecord({"held_out": told["held_out"]})

    while len(list(grid.get_node_ids())) < nodes:  # so that the first round waits for nobody
        time.sleep(0.2)
    FedAvg(fraction_evaluate=float(config["fraction-evaluate"])).start(
        grid=grid, num_rounds=int(config["rounds"]), timeout=float(config["timeout"]),
        initial_arrays=ArrayRecord({n: torch.from_numpy(np.array(v)) for n, v in first.items()}),
        evaluate_fn=evaluated,
    )  # fmt: skip
