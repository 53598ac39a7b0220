"""Events a second that one device sustains through its spool, against a bare producer."""

import json
import subprocess
from typing import Any

from tests.bench.edge.pump import PumpPlan
from tests.bench.edge.stage import Stage
from tests.bench.edge.tasks import TASKS
from tests.bench.kafka import ROOT
from tests.bench.report import Cell, Goal, Results, Table


def sustained(stage: Stage, results: Results) -> None:
    rows: list[list[Cell]] = []
    for upload, reference in TASKS.items():
        events = stage.size.segments if upload == "segment" else stage.size.predictions
        plan = PumpPlan(reference, stage.kafka.settings.bootstrap, events)
        runs: list[tuple[float, dict[str, Any], float]] = []
        for _ in range(stage.size.repeats):
            with stage.quietly() as load:
                found = _pump(stage, plan)
            runs.append((found["bare_s"] / found["device_s"], found, load.others))
        share, found, others = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        rows += [
            [f"{upload}s, the device", events / found["device_s"], share, found["messages"],
             found["bytes"] / events, f"{others:.0%}"],
            [f"{upload}s, a bare producer", events / found["bare_s"], 1, found["messages"],
             found["bytes"] / events, f"{others:.0%}"],
        ]  # fmt: skip
        results.goals.append(
            Goal(f"events a second, device / bare producer, {upload}s", share, at_least=0.8)
        )
    text = (
        "Events that are ready go through the agent's recorder (Arrow), spool (synced) and uplink; "
        "then a bare KafkaProducer sends the very same messages, which are ready, with the same "
        "options (zstd, acks=all, idempotent) and as many on the way, in the same process. The "
        f"median of {stage.size.repeats} by the share."
    )
    columns = ["", "events/s", "of the bare", "messages", "bytes an event before zstd"]
    results.tables.append(Table("Sustained", text, [*columns, "others' load"], rows))


def _pump(stage: Stage, plan: PumpPlan) -> dict[str, Any]:
    argv = [str(stage.edge), "-m", "tests.bench.edge.pump", plan.argument()]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the pump failed: {done.stderr.strip()[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
