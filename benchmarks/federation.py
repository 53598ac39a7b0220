"""Federated rounds: `python -m benchmarks.federation`.

    speed     seconds of a round beside stock Flower's, and a run's first round
    dropouts  seconds to an accuracy where devices drop out

Both are measured on real processes: SuperLink, SuperExec, Kafka, and on our side
devices that sleep until they are invited. All train by `learning.fit`, with the same segments,
epochs and one thread. Accuracy is that of the segments that the fleet's people hold out.
"""

from collections.abc import Callable

import torch

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.support.flower import Arena, Ended

STOCK, OURS = "Flower's FedAvg", "ours"
DROP, TARGET, DEADLINE_S, MOST_ROUNDS = 0.3, 0.88, 30.0, 8


def speed(bench: Bench) -> None:
    count, number = 4, bench.size(3, 2)
    contenders: dict[str, Callable[[], Ended]] = {
        STOCK: lambda: Arena.make(bench, "stock", count).stock(number, {"fraction-evaluate": 0.0}),
        OURS: lambda: Arena.make(bench, "ours", count).ours(number, {}),
    }
    found, failed = bench.turns(contenders, bench.size(3, 1))
    rows: list[list[Cell]] = []
    for name, runs in found.items():
        if name in failed:
            rows.append([f"{name} failed: {failed[name]}", *[None] * 3])
            continue
        each, first = ([f(one) for one in runs] for f in (_each_s, _first_s))
        rows.append([
            name, Figure.of(each), Figure.of(first),
            Figure.of([one.rounds[-1][2] for one in runs]),
        ])  # fmt: skip
    if OURS in failed:
        raise RuntimeError(failed[OURS])
    ours = found[OURS]
    if found[STOCK]:
        ratio = Figure.ratio([_each_s(r) for r in ours], [_each_s(r) for r in found[STOCK]])
        bench.goal(f"seconds of a round to {STOCK}, {count} devices", ratio, at_most=0.25)
    more = Figure.of([one.first_s - one.each_s for one in ours])
    bench.goal("the first round with the start of its children, seconds more", more, at_most=4.0)
    text = (
        f"HAR, {count} devices, {number} rounds of 3 epochs. A round: the mean of those after the "
        "first. The first round: of Flower with its nodes online, of ours from the invitation of "
        "devices that sleep. Flower evaluates on the server alone."
    )
    columns = ["", "s a round", "first round, s", "accuracy"]
    bench.table("Seconds of a round", columns, rows, text)


def _each_s(run: Ended) -> float:
    return run.each_s


def _first_s(run: Ended) -> float:
    return run.first_s


def dropouts(bench: Bench) -> None:
    count, most, target = 10, bench.size(MOST_ROUNDS, 1), bench.size(TARGET, 2.0)
    limited, plain = f"{STOCK}, timeout={DEADLINE_S:.0f}", f"{STOCK}, as it comes"

    def arena(name: str) -> Arena:
        return Arena.make(bench, f"dropouts-{name}", count, DROP)

    config = {"minimum-nodes": count - 2, "round-deadline-s": DEADLINE_S}
    contenders: dict[str, Callable[[], Ended]] = {
        limited: lambda: arena("limited").stock(
            most, {"timeout": DEADLINE_S, "fraction-evaluate": 0.0}, target
        ),
        OURS: lambda: arena("ours").ours(most, {**config}, target),
        plain: lambda: arena("plain").stock(most, {}, target),
    }
    if bench.quick:
        del contenders[plain]
    found, failed = bench.turns(contenders, 1)
    rows: list[list[Cell]] = []
    took: dict[str, float] = {}
    for name, runs in found.items():
        if name in failed:
            rows.append([f"{name} failed: {failed[name]}", *[None] * 3])
            continue
        (run,) = runs
        reached = run.seconds_to(target)
        took[name] = reached or run.rounds[-1][1] - run.rounds[0][1]
        rows.append([name, reached, run.rounds[-1][0], run.rounds[-1][2]])
    for name, least in ((limited, 3.0), (plain, None)):
        if name in took and OURS in took:
            text = f"times faster to {TARGET:.0%} than {name}"
            bench.goal(text, took[name] / took[OURS], at_least=least)
    text = (
        f"{count} devices; each drops out of a round with probability {DROP} and is silent for "
        f"60 s, the same rounds for all. Seconds until {TARGET:.0%} twice in a row; where one does "
        f"not come so far in {most} rounds, its whole run counts. Ours has a deadline of "
        f"{DEADLINE_S:.0f} s and begins with {count - 2} devices. One run each."
    )
    bench.table("Drop-outs", ["", "seconds", "rounds", "accuracy at the end"], rows, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(
        "federation",
        {f.__name__: f for f in (speed, dropouts)},
        ("torch", "flwr"),
    )
