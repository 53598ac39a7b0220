"""`python -m tests.bench.federation [--quick] [--only PART]`."""

from functools import partial

import torch

from streams.contract.task import load_task
from streams.runtime.disk import cache_folder
from tests.bench.command import arguments, command_line, measure, quiet, working_folder
from tests.bench.federation.attacks import attacks
from tests.bench.federation.learning import learning
from tests.bench.federation.real.dropouts import dropouts
from tests.bench.federation.real.memory import memory
from tests.bench.federation.real.processes import adopt_orphans
from tests.bench.federation.real.speed import size, speed
from tests.bench.federation.real.stage import Stage
from tests.bench.federation.study import FULL, QUICK, TASK, Study
from tests.bench.federation.virtual import halves, virtual
from tests.bench.kafka import real_kafka
from tests.bench.pages import begin, finish

NAME = "federation"
PACKAGES = ("torch", "numpy", "flwr")
STAGED = {f.__name__: f for f in (speed, dropouts, size, memory)}  # on real processes
STUDIES = {f.__name__: f for f in (virtual, halves, learning, attacks)}


def main() -> None:
    asked = arguments(NAME, [*STAGED, *STUDIES]).parse_args()
    torch.set_num_threads(1)
    quiet("flwr", "federation")
    adopt_orphans()
    task = load_task(TASK)
    with working_folder() as folder, real_kafka(folder) as kafka:
        study = Study(folder, task, QUICK if asked.quick else FULL)
        stage = Stage(folder, cache_folder(), folder / "people", TASK, task, kafka, asked.quick)
        results = begin(NAME, command_line(NAME), kafka.name, PACKAGES)
        for name in task.device_names("fleet"):
            stage.person(name)
        parts = {name: partial(part, stage) for name, part in STAGED.items()}
        parts |= {name: partial(part, study) for name, part in STUDIES.items()}
        measure(NAME, results, parts, asked, kafka.pid)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
