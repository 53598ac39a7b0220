"""Seconds and bytes per round on real processes: ours beside a stock Flower app and NVFlare, with
the same devices, data and training."""

import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from federation.controller.flwr_cli import ConfigValue
from streams.contract.weights import payload
from tests.bench.federation.real.flare.run import PYTHON, run_flare
from tests.bench.federation.real.processes import Ended, ours, run_ours, run_stock, stock
from tests.bench.federation.real.stage import Stage
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table

ROUNDS, RUNS = 2, 3
DEVICES = 4
TIMEOUT_S = 900.0
STOCK, FLARE, OURS = "Flower's FedAvg", "NVFlare's FedAvg", "ours"


def our_config(stage: Stage, folder: Path, nodes: int, rounds: int) -> dict[str, ConfigValue]:
    return {
        "task": stage.reference, "state": str(folder), "rounds": rounds, "minimum-nodes": nodes,
        "epochs": stage.task.training.epochs, "kafka": stage.kafka.settings.bootstrap,
    }  # fmt: skip


def stock_config(stage: Stage, folder: Path, nodes: int, rounds: int) -> dict[str, ConfigValue]:
    """Flower's own defaults, but that it evaluates on the server alone, as ours does in a run."""
    return {
        "task": stage.reference, "weights": str(folder / "first.safetensors"),
        "heldout": str(stage.heldout(folder)), "nodes": nodes, "rounds": rounds,
        "epochs": stage.task.training.epochs, "fraction-evaluate": 0.0,
    }  # fmt: skip


def run_stock_once(stage: Stage) -> Ended:
    with (
        stage.state("speed-stock") as folder,
        stock(folder, stage.plan(folder, DEVICES)) as (port, _),
    ):
        config = stock_config(stage, folder, DEVICES, ROUNDS)
        return run_stock(folder, port, config, TIMEOUT_S)


def run_ours_once(stage: Stage) -> Ended:
    with stage.state("speed-ours") as folder:
        plan = stage.plan(folder, DEVICES)
        with ours(folder, stage.reference, plan, stage.kafka.settings.bootstrap) as (port, _):
            config = our_config(stage, folder, DEVICES, ROUNDS)
            return run_ours(folder, port, config, TIMEOUT_S)


def run_flare_once(stage: Stage) -> Ended:
    with stage.state("speed-flare") as folder:
        clients = [one.device for one in stage.plan(folder, DEVICES)]
        return run_flare(stage, folder, clients, ROUNDS, TIMEOUT_S)


def speed(stage: Stage, results: Results) -> None:
    """Contenders take turns."""
    contenders = {STOCK: run_stock_once, FLARE: run_flare_once, OURS: run_ours_once}
    if not PYTHON.exists():
        del contenders[FLARE]
    runs: dict[str, list[tuple[Ended, float]]] = {name: [] for name in contenders}
    for _ in range(1 if stage.quick else RUNS):
        for name, run in contenders.items():
            with watched(stage.kafka.pid) as load:
                ended = run(stage)
            runs[name].append((ended, load.others))
    seconds = {name: [one.seconds_per_round for one, _ in found] for name, found in runs.items()}
    rows: list[list[Cell]] = []
    for name, found in runs.items():
        others = max(load for _, load in found)
        ratio = Figure.ratio(seconds[name], seconds[STOCK])
        shares = Figure.of([one.rounds[-1][2] for one, _ in found])
        rows.append([name, len(found), Figure.of(seconds[name]), ratio, shares, f"{others:.0%}"])
        if name != OURS:
            title = f"seconds per round to {name}, {DEVICES} devices"
            wanted = 0.25 if name == STOCK else None
            measured = Figure.ratio(seconds[OURS], seconds[name])
            results.goals.append(Goal(title, measured, at_most=wanted))
    missing = "" if FLARE in runs else " NVFlare was not measured: it is not installed."
    text = (
        f"HAR, {DEVICES} devices, {ROUNDS} rounds of {stage.task.training.epochs} epochs, all of a "
        "person's labelled segments; from the end of round 1 to that of the last. Flower: "
        "its defaults, but evaluation on the server alone. NVFlare: its POC mode, with TLS; a "
        "client's process stays from round to round, and evaluates before it trains. All with one "
        "thread a process. Accuracy: of the segments that the fleet's 15 people hold out, at the "
        f"end.{missing}"
    )
    columns = ["", "runs", "s a round", "to Flower's", "accuracy", "others' load"]
    results.tables.append(Table("Seconds per round", text, columns, rows))


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
