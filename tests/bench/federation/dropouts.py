"""Wall time to an accuracy on real Flower processes where devices drop out and some are slow."""

import time

from tests.bench.federation.processes import Ended, ours, run_ours, run_stock, stock
from tests.bench.federation.speed import our_config, stock_config
from tests.bench.federation.stage import SECONDS_AWAY, Stage, failing
from tests.bench.report import Goal, Results, Table

DEVICES, DROP, SLOW, SHARE = 10, 0.3, 5.0, 0.2
TARGET = 0.88  # of the segments that the fleet's people hold out
ROUNDS, STEPS = 12, 40  # at most: rounds, and steps of a buffer of half the fleet
DEADLINE_S = 20.0  # of a synchronous round of ours
TIMEOUT_S = 1200.0


def dropouts(stage: Stage, results: Results) -> None:
    found = {"stock FedAvg": _stock(stage)}
    found[f"synchronous, {DEADLINE_S:.0f} s at most"] = _ours(stage, "fedavg", ROUNDS)
    found["buffered, fedbuff"] = _ours(stage, "fedbuff", STEPS)
    theirs = found["stock FedAvg"].seconds_to(TARGET)
    rows = []
    for name, run in found.items():
        took = run.seconds_to(TARGET)
        faster = theirs / took if theirs and took else None
        last = run.rounds[-1]
        rows.append([name, took, faster, last[0], run.seconds_per_round, last[2]])
        if name != "stock FedAvg":
            text = f"times faster to {TARGET:.2f} than stock, {name}"
            results.goals.append(Goal(text, faster or 0.0, at_least=3.0))
    text = (
        f"HAR, {DEVICES} devices; each drops out of a round with probability {DROP} and is silent "
        f"for {SECONDS_AWAY:.0f} s (Flower itself takes up to a minute to give up a node), the "
        f"same rounds for all; {SHARE:.0%} of the devices take {SLOW:.0f} times as long. Seconds "
        f"until {TARGET:.0%} of the segments that the fleet's 15 people hold out are right, twice "
        "in a row."
    )
    columns = ["", "seconds", "times faster", "rounds", "s a round", "accuracy at the end"]
    results.tables.append(Table("Drop-outs and slow devices", text, columns, rows))


def _stock(stage: Stage) -> Ended:
    with stage.state("dropouts-stock") as folder:
        plan = failing(stage.plan(folder, DEVICES), DROP, SLOW, SHARE)
        config = stock_config(stage, folder, DEVICES, ROUNDS)
        with stock(folder, plan) as (port, _):
            return run_stock(folder, port, config, TIMEOUT_S, TARGET)


def _ours(stage: Stage, strategy: str, rounds: int) -> Ended:
    with stage.state(f"dropouts-{strategy}") as folder:
        plan = failing(stage.plan(folder, DEVICES), DROP, SLOW, SHARE)
        config = our_config(stage, folder, DEVICES, rounds)
        config |= {"strategy": strategy, "minimum-nodes": DEVICES - 2}
        if strategy == "fedavg":
            config["round-deadline-s"] = DEADLINE_S
        kafka = stage.kafka.settings.bootstrap
        with ours(folder, stage.reference, plan, kafka) as (port, _):
            time.sleep(5.0)  # all nodes are there, as stock waits for them
            return run_ours(folder, port, config, TIMEOUT_S, TARGET)
