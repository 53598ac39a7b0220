"""`python -m tests.bench.federation.real.memory KIND COUNT`: peak memory of a server that makes one
model of COUNT updates of HAR's; COUNT 0 is what the process takes without any."""

import json
import os
import subprocess
import sys

import numpy as np

from federation.admission.update import Update
from federation.aggregation import strategies
from streams.contract.task import load_task
from streams.contract.weights import payload
from tests.bench.federation.real.stage import Stage
from tests.bench.kafka import ROOT
from tests.bench.meter import sample
from tests.bench.report import Results, Table

COUNTS = (0, 250, 1000)
KINDS = ("stock FedAvg", "fedavg", "median", "krum")


def memory(stage: Stage, results: Results) -> None:
    rows = []
    model = sum(len(payload.pack({n: t.numpy()})) for n, t in _state().items())
    for kind in KINDS:
        none, some, many = (_peak(kind, count) for count in COUNTS)
        each = (many - some) / (COUNTS[2] - COUNTS[1])
        rows.append([kind, none / 1e6, many / 1e6, each / 1e3, each / model])
    text = (
        f"Peak RSS of one process that makes one model of {COUNTS[2]:,} updates of HAR's device "
        "model, one process each; what one device more costs, and that in models."
    )
    columns = ["", "MB without", f"MB with {COUNTS[2]:,}", "kB a device", "models a device"]
    results.tables.append(Table("Server memory per device", text, columns, rows))


def _peak(kind: str, count: int) -> int:
    argv = [sys.executable, "-m", "tests.bench.federation.real.memory", kind, str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _state():  # type: ignore[no-untyped-def]
    return load_task("streams.tasks.har:task").build_model().state_dict()


def main(kind: str, count: int) -> None:
    first = {name: tensor.numpy() for name, tensor in _state().items()}
    dice = np.random.default_rng(0)

    def moved() -> dict[str, np.ndarray]:
        return {
            n: np.asarray(t + 1e-3 * dice.standard_normal(t.shape)).astype(t.dtype)
            for n, t in first.items()
        }

    if kind == "stock FedAvg":
        from flwr.serverapp.strategy import FedAvg

        from federation.aggregation.aggregator import Move
        from tests.flower_arithmetic import reply

        # Flower's own: one message a node, each tensor as a numpy file
        messages = [reply(Move(moved(), 50)) for _ in range(count)]
        if messages:
            FedAvg().aggregate_train(1, messages)
    elif count:
        blocks = [payload.encode_update(moved(), first, "float32") for _ in range(count)]
        updates = [
            Update(
                f"d{i}", "har", 1, "1-a", 50, payload.restore_update(payload.unpack(block), first)
            )
            for i, block in enumerate(blocks)
        ]
        del blocks
        strategies.make(kind).aggregate(updates, first)
    print(sample(os.getpid()).peak_bytes)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
