"""Wall time to an accuracy on real Flower processes where devices drop out and some are slow."""

import time
from collections.abc import Callable

from federation.controller.flwr_cli import ConfigValue
from tests.bench.federation.real.processes import Ended, ours, run_ours, run_stock, stock
from tests.bench.federation.real.speed import our_config, stock_config
from tests.bench.federation.real.stage import SECONDS_AWAY, Stage, failing
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table

DEVICES, DROP, SLOW, SHARE = 10, 0.3, 5.0, 0.2
TARGET = 0.88  # of the segments that the fleet's people hold out
ROUNDS = 8  # at most
# Of a synchronous round, of ours and of Flower's. Ten ClientApps that import torch take about 20 s
# on two cores: with a shorter one Flower would have no answers.
DEADLINE_S = 30.0
TIMEOUT_S = 600.0
STOCK = "Flower's FedAvg, as it comes"


def stock_name(deadline_s: float) -> str:
    return f"Flower's FedAvg, timeout={deadline_s:.0f}"


def our_name(deadline_s: float) -> str:
    return f"synchronous, {deadline_s:.0f} s at most"


STOCK_DEADLINE, OURS = stock_name(DEADLINE_S), our_name(DEADLINE_S)


def dropouts(stage: Stage, results: Results) -> None:
    """Each contender once: what is drawn is the same for all."""
    contenders: dict[str, Callable[[], Ended]] = {
        STOCK_DEADLINE: lambda: _stock(stage, {"timeout": DEADLINE_S}),
        OURS: lambda: _ours(stage),
        STOCK: lambda: _stock(stage, {"fraction-evaluate": 1.0}),
    }
    runs: dict[str, Ended] = {}
    others: dict[str, float] = {}
    for name, run in contenders.items():
        with watched(stage.kafka.pid) as load:
            runs[name] = run()
        others[name] = load.others
    took = {name: run.seconds_to(TARGET) for name, run in runs.items()}
    least = {name: took[name] or run.seconds for name, run in runs.items()}
    rows: list[list[Cell]] = []
    for name, run in runs.items():
        number, _, share = run.rounds[-1]
        faster = [times(least[other], took[name]) for other in (STOCK_DEADLINE, STOCK)]
        each = run.seconds_per_round if number > 1 else None
        rows.append([name, 1, took[name], *faster, number, each, share, f"{others[name]:.0%}"])
        if name not in (STOCK, STOCK_DEADLINE):
            results.goals += goals(name, STOCK_DEADLINE, *faster)
    results.tables.append(Table("Drop-outs and slow devices", _text(), COLUMNS, rows))


def times(theirs: float | None, ours: float | None) -> float | None:
    """How many times faster ours is, where it has come to the target."""
    return theirs / ours if theirs and ours else None


def goals(
    name: str, stock: str, deadline: float | Figure | None, plain: float | Figure | None
) -> list[Goal]:
    """Beside Flower with the same deadline, which is `stock`, and as it comes."""
    text = f"times faster to {TARGET:.2f} than"
    return [
        Goal(f"{text} {stock}, {name}", deadline or 0.0, at_least=3.0),
        Goal(f"{text} {STOCK}, {name}", plain or 0.0),
    ]


COLUMNS = [
    "", "runs", "seconds", "times faster than with timeout", "than as it comes", "rounds",
    "s a round", "accuracy at the end", "others' load",
]  # fmt: skip


def _text() -> str:
    return (
        f"HAR, {DEVICES} devices; each drops out of a round with probability {DROP} and is silent "
        f"for {SECONDS_AWAY:.0f} s (Flower itself takes up to a minute to give up a node), the "
        f"same rounds for all; {SHARE:.0%} of the devices take {SLOW:.0f} times as long. Seconds "
        f"until {TARGET:.0%} of the segments that the fleet's 15 people hold out are right, twice "
        f"in a row. As it comes: every default of `FedAvg`, which waits 3600 s for an answer. With "
        f"`timeout={DEADLINE_S:.0f}`, the deadline of ours, `FedAvg` goes on with the answers that "
        "came; it evaluates on the server alone. Ours has that deadline and a minimum of "
        f"{DEVICES - 2} devices, ends a round early when all that work have answered, and does not "
        "ask devices that are silent on `fleet`. Where one did not come so far in "
        f"{ROUNDS} rounds, its whole run counts as its time. One run each; repeated runs are in "
        "simulated time."
    )


def _target(stage: Stage) -> float:
    """A quick run ends with its first round."""
    return 0.0 if stage.quick else TARGET


def _stock(stage: Stage, settings: dict[str, ConfigValue]) -> Ended:
    with stage.state("dropouts-stock") as folder:
        plan = failing(stage.plan(folder, DEVICES), DROP, SLOW, SHARE)
        config = stock_config(stage, folder, DEVICES, ROUNDS) | settings
        with stock(folder, plan) as (port, _):
            return run_stock(folder, port, config, TIMEOUT_S, _target(stage))


def _ours(stage: Stage) -> Ended:
    with stage.state("dropouts-ours") as folder:
        plan = failing(stage.plan(folder, DEVICES), DROP, SLOW, SHARE)
        config = our_config(stage, folder, DEVICES, ROUNDS)
        config |= {"minimum-nodes": DEVICES - 2, "round-deadline-s": DEADLINE_S}
        kafka = stage.kafka.settings.bootstrap
        with ours(folder, stage.reference, plan, kafka) as (port, _):
            time.sleep(5.0)  # all nodes are there, as stock waits for them
            return run_ours(folder, port, config, TIMEOUT_S, _target(stage))
