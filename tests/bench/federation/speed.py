"""Seconds and bytes per round on real Flower processes: ours against a stock Flower app, with the
same devices, data and training."""

import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from federation.controller.flwr_cli import ConfigValue
from streams.contract import payload
from tests.bench.federation.processes import Ended, ours, run_ours, run_stock, stock
from tests.bench.federation.stage import Stage
from tests.bench.report import Goal, Results, Table

ROUNDS = 6
DEVICES = (4, 8)
TIMEOUT_S = 900.0


def our_config(stage: Stage, folder: Path, nodes: int, rounds: int) -> dict[str, ConfigValue]:
    return {
        "task": stage.reference, "state": str(folder), "rounds": rounds, "minimum-nodes": nodes,
        "epochs": stage.task.training.epochs, "kafka": stage.kafka.settings.bootstrap,
    }  # fmt: skip


def stock_config(stage: Stage, folder: Path, nodes: int, rounds: int) -> dict[str, ConfigValue]:
    return {
        "task": stage.reference, "weights": str(folder / "first.safetensors"),
        "heldout": str(stage.heldout(folder)), "nodes": nodes, "rounds": rounds,
        "epochs": stage.task.training.epochs,
    }  # fmt: skip


def run_pair(stage: Stage, count: int, rounds: int) -> tuple[Ended, Ended]:
    """A stock run, then ours."""
    with (
        stage.state(f"stock-{count}") as folder,
        stock(folder, stage.plan(folder, count)) as (port, _),
    ):
        config = stock_config(stage, folder, count, rounds)
        theirs = run_stock(folder, port, config, TIMEOUT_S)
    with stage.state(f"ours-{count}") as folder:
        plan = stage.plan(folder, count)
        with ours(folder, stage.reference, plan, stage.kafka.settings.bootstrap) as (port, _):
            config = our_config(stage, folder, count, rounds)
            mine = run_ours(folder, port, config, TIMEOUT_S)
    return theirs, mine


def speed(stage: Stage, results: Results) -> None:
    rows, goals = [], []
    for count in DEVICES:
        theirs, mine = run_pair(stage, count, ROUNDS)
        ratio = mine.seconds_per_round / theirs.seconds_per_round
        rows.append(
            [f"{count} devices", theirs.seconds_per_round, mine.seconds_per_round, ratio,
             theirs.rounds[-1][2], mine.rounds[-1][2]]
        )  # fmt: skip
        goals.append(Goal(f"seconds per round to stock, {count} devices", ratio, at_most=0.35))
    text = (
        f"HAR, {ROUNDS} rounds of {stage.task.training.epochs} epochs, all of a person's labelled "
        "segments; the mean from the end of round 1 to that of the last. Stock: FedAvg, Flower's "
        "own settings, a ClientApp that imports torch and loads its data. Both with one thread a "
        "process. Accuracy: of the segments that the fleet's 15 people hold out, at the end."
    )
    columns = ["", "stock s", "ours s", "ratio", "stock accuracy", "ours"]
    results.tables.append(Table("Seconds per round", text, columns, rows))
    results.goals += goals


def size(stage: Stage, results: Results) -> None:
    """Bytes of weights that one device receives and sends in a round; what Flower puts around them
    is the same for all."""
    with stage.state("size") as folder:
        first = safetensors.numpy.load((folder / "first.safetensors").read_bytes())
    dice = np.random.default_rng(0)
    moved = {
        name: np.asarray(t + 1e-3 * dice.standard_normal(t.shape)).astype(t.dtype)
        for name, t in first.items()
    }
    plain = _as_stock(first)
    rows = [["stock: an ArrayRecord of numpy files", plain, plain, 1.0]]
    for kind in ("float32", "float16"):
        sent = payload.round_weights(first, kind)
        began = time.perf_counter()
        down, up = (
            len(payload.encode_weights(first, kind)),
            len(payload.encode_update(moved, sent, kind)),
        )
        spent_ms = 1e3 * (time.perf_counter() - began)
        name = f"ours, {kind} ({spent_ms:.1f} ms to pack both)"
        rows.append([name, down, up, (down + up) / (2 * plain)])
    text = "HAR's device model, after a training."
    columns = ["", "down", "up", "bytes to stock"]
    results.tables.append(Table("Bytes per device and round", text, columns, rows))


def _as_stock(tensors: dict[str, np.ndarray]) -> int:
    from flwr.app import Array

    return sum(len(Array(value).data) for value in tensors.values())
