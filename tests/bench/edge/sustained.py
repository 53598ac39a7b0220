"""Events a second that one device sustains through its spool, against a bare producer."""

import json
import subprocess
from typing import Any

from tests.bench.edge.pump import PumpPlan
from tests.bench.edge.stage import Stage
from tests.bench.edge.tasks import TASKS
from tests.bench.kafka import ROOT
from tests.bench.report import Cell, Figure, Goal, Results, Table

LEAST = {"segment": 0.8, "prediction": 0.7}  # of a bare producer


def sustained(stage: Stage, results: Results) -> None:
    rows: list[list[Cell]] = []
    for upload, reference in TASKS.items():
        events = stage.size.segments if upload == "segment" else stage.size.predictions
        plan = PumpPlan(reference, stage.kafka.settings.bootstrap, events)
        runs: list[dict[str, Any]] = []
        others = 0.0
        for _ in range(stage.size.repeats):
            with stage.quietly() as load:
                found = _pump(stage, plan)
            runs.append(found)
            others = max(others, load.others)
        device, bare = ([run[name] for run in runs] for name in ("device_s", "bare_s"))
        share = Figure.ratio(bare, device)
        for name, seconds, ratio in (("the device", device, share), ("a bare producer", bare, 1)):
            rows.append([
                f"{upload}s, {name}", Figure.of([events / one for one in seconds]), ratio,
                runs[-1]["messages"], runs[-1]["bytes"] / events, f"{others:.0%}",
            ])  # fmt: skip
        results.goals.append(
            Goal(
                f"events a second, device / bare producer, {upload}s", share, at_least=LEAST[upload]
            )
        )
    text = (
        "Events that are ready go through the agent's recorder (Arrow), spool (synced) and uplink; "
        "then a bare KafkaProducer sends the very same messages, which are ready, with the same "
        "options (zstd, acks=all, idempotent) and as many on the way, in the same process. The "
        f"median of {stage.size.repeats} processes, the least and the most."
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
