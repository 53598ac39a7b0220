"""A real SuperLink with real SuperNodes: what a node costs it when idle, and in a round."""

import os
import time
from pathlib import Path

import safetensors.numpy

from streams.contract.task import load_task
from streams.contract.weights import payload
from streams.runtime.disk import cache_folder
from tests.bench.federation.real.processes import Processes, ours, run_ours
from tests.bench.federation.real.speed import our_config
from tests.bench.federation.real.stage import Stage
from tests.bench.federation.study import TASK
from tests.bench.kafka import Kafka
from tests.bench.machine import ours_s, processes
from tests.bench.meter import sample
from tests.bench.report import Cell, Results, Table
from tests.bench.scale.drains import Bed
from tests.bench.scale.fit import fit

NODES, QUICK = (2, 4, 8), (1, 3)
ROUNDS = 2
TIMEOUT_S = 400.0
MB = 1e6


def rounds(bed: Bed, results: Results) -> None:
    """SuperLinks with few and with more nodes, idle for a while, then one run."""
    task, folder = load_task(TASK), bed.stage.new_folder("rounds")
    folder.mkdir(parents=True)
    kafka = Kafka(bed.stage.settings, bed.stage.kafka, bed.stage.broker)
    stage = Stage(folder, cache_folder(), folder / "people", TASK, task, kafka, bed.quick)
    idle_s = 10.0 if bed.quick else 20.0
    rows: list[list[Cell]] = []
    idle, run, memory = [], [], []
    for count in QUICK if bed.quick else NODES:
        with bed.watched() as load:
            link = _measured(stage, count, idle_s)
        rows.append([count, *link, f"{load.others:.0%}"])
        idle.append(((count,), [1000 * link[0]]))
        memory.append(((count,), [link[1] * MB]))
        run.append(((count * ROUNDS,), [link[2]]))
    text = (
        f"HAR. SuperLink with `--database`, process isolation and no TLS, as `tidewheel superlink` "
        f"starts it. Idle: {idle_s:.0f} s in which nodes pull every 3 s and find nothing. Then one "
        f"run of {ROUNDS} rounds of one epoch in which every node trains: the SuperLink's CPU from "
        "the call of `flwr run` to the run's end; the ServerApp has a process of its own."
    )
    columns = ["nodes", "idle, CPU s a second", "resident MB", "a run, CPU s", "a run, s",
               "database MB", "others' load"]  # fmt: skip
    results.tables.append(Table("SuperLink", text, columns, rows))
    costs: list[list[Cell]] = []
    for name, points in (("idle, CPU ms a second", idle), ("resident bytes", memory),
                         ("a run, CPU s a node and round", run)):  # fmt: skip
        made = fit(points)
        costs.append([name, made.slopes[0].median, made.intercept.median, made.verdict])
    down, up = _bytes(task)
    costs.append(["bytes of weights to a node in a round", down, None, ""])
    costs.append(["bytes of weights from it", up, None, ""])
    columns = ["", "a node", "without any", "the fit"]
    text = "Lines through these, one run each. Bytes: HAR's device model, float16 as the task asks."
    results.tables.append(Table("Costs of a node", text, columns, costs))


def _measured(stage: Stage, count: int, idle_s: float) -> tuple[float, float, float, float, float]:
    """CPU s a second when idle, resident MB, CPU s and seconds of a run, MB of the database."""
    with stage.state(f"scale-{count}") as folder:
        plan = stage.plan(folder, count)
        with ours(folder, stage.reference, plan, stage.kafka.settings.bootstrap) as (port, them):
            link = _superlink(them)
            before, began = _spent(link), time.monotonic()
            time.sleep(idle_s)  # what is measured is how little happens
            idle = (_spent(link) - before) / (time.monotonic() - began)
            before, began = _spent(link), time.monotonic()
            config = our_config(stage, folder, count, ROUNDS) | {"epochs": 1}
            run_ours(folder, port, config, TIMEOUT_S)
            cpu_s, took_s = _spent(link) - before, time.monotonic() - began
            resident = sample(link).resident_bytes / MB
            size = sum(path.stat().st_size for path in _databases(folder)) / MB
            return idle, resident, cpu_s, took_s, size


def _superlink(them: Processes) -> int:
    """The process of the SuperLink, by its command line."""
    for process in them.running:
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if b"flower-superlink" in line and process.pid != os.getpid():
            return process.pid
    raise SystemExit("there is no SuperLink")


def _spent(pid: int) -> float:
    return ours_s(processes(), pid)


def _databases(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ".db" in path.name]


def _bytes(task) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Weights that a node receives and sends in a round."""
    state = {name: tensor.numpy() for name, tensor in task.build_model().state_dict().items()}
    first = safetensors.numpy.load(safetensors.numpy.save(state))
    sent = payload.round_weights(first, task.training.payload)
    down = len(payload.encode_weights(first, task.training.payload))
    moved = {name: value + value.dtype.type(1e-3) for name, value in first.items()}
    return down, len(payload.encode_update(moved, sent, task.training.payload))
