"""Federated rounds: `python -m benchmarks.federation`.

    speed     seconds of a round, and of a run's first round
    learning  what the fleet's people gain, without processes

Speed is measured on real processes: SuperLink, SuperExec, Kafka, and devices that sleep until they
are invited. Accuracy is that of the segments that the fleet's people hold out.
"""

import torch

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.gains.ways import learning
from benchmarks.support.flower import Arena

RUN = "a run"


def speed(bench: Bench) -> None:
    count, number = 4, bench.size(3, 2)
    contenders = {RUN: lambda: Arena.make(bench, "run", count).run(number)}
    found, failed = bench.turns(contenders, bench.size(3, 1))
    if failed:
        raise RuntimeError(failed[RUN])
    runs = found[RUN]
    each, first = Figure.of([r.each_s for r in runs]), Figure.of([r.first_s for r in runs])
    bench.goal(f"seconds of a round, {count} devices", each, at_most=2.5)
    more = Figure.of([one.first_s - one.each_s for one in runs])
    bench.goal("the first round with the start of its children, seconds more", more, at_most=4.0)
    text = (
        f"HAR, {count} devices, {number} rounds of 3 epochs. A round: the mean of those after the "
        "first. The first round: from the invitation of devices that sleep."
    )
    row: list[Cell] = [each, first, Figure.of([run.rounds[-1][2] for run in runs])]
    bench.table("Seconds of a round", ["s a round", "first round, s", "accuracy"], [row], text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("federation", {f.__name__: f for f in (speed, learning)}, ("torch", "flwr"))
