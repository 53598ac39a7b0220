"""`python -m tests.bench.scale [--quick] [--only PART]`."""

from functools import partial

import torch

from tests.bench.command import arguments, command_line, measure, quiet, working_folder
from tests.bench.federation.real.processes import adopt_orphans
from tests.bench.pages import begin, finish
from tests.bench.scale.commits import commits
from tests.bench.scale.controller import controller
from tests.bench.scale.drains import Bed, Case
from tests.bench.scale.events import events, workers
from tests.bench.scale.held import held
from tests.bench.scale.needs import million
from tests.bench.scale.rounds import rounds
from tests.bench.streams.bench import stage

NAME = "scale"
PACKAGES = ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka", "flwr")
PARTS = {f.__name__: f for f in (events, workers, held, commits, controller, rounds)}


def main() -> None:
    asked = arguments(NAME, PARTS).parse_args()
    torch.set_num_threads(1)
    quiet("flwr", "federation")
    adopt_orphans()
    with working_folder() as folder, stage(folder, patience_s=10 if asked.quick else 30) as place:
        results = begin(NAME, command_line(NAME), place.kafka, PACKAGES)
        bed = Bed(place, asked.quick)
        bed.drain(Case(rounds=2))  # the broker's compiler, and the disk's cache
        parts = {name: partial(part, bed) for name, part in PARTS.items()}
        measure(NAME, results, parts, asked, highest=lambda: bed.highest_load)
        if not asked.only:
            million(results)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
