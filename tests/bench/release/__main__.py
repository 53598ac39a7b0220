"""`python -m tests.bench.release [--quick] [--only PART]`."""

from functools import partial

import torch

from streams.contract.task import load_task
from tests.bench.command import arguments, command_line, measure, quiet, working_folder
from tests.bench.kafka import real_kafka
from tests.bench.pages import begin, finish
from tests.bench.release.cost import cost
from tests.bench.release.drift import drift
from tests.bench.release.judging import judging
from tests.bench.release.recovery import recovery
from tests.bench.release.rollouts.verdicts import verdicts
from tests.bench.release.spread import spread
from tests.bench.release.stage import Stage

NAME, TASK = "release", "streams.tasks.har:task"
PACKAGES = ("onnxruntime", "torch", "numpy", "kafka-python", "cryptography")
PARTS = {f.__name__: f for f in (spread, cost, drift, judging, verdicts, recovery)}


def main() -> None:
    asked = arguments(NAME, PARTS).parse_args()
    torch.set_num_threads(1)
    quiet("federation")
    with working_folder() as folder, real_kafka(folder) as kafka:
        stage = Stage(folder, TASK, load_task(TASK), kafka, asked.quick)
        results = begin(NAME, command_line(NAME), kafka.name, PACKAGES)
        parts = {name: partial(part, stage) for name, part in PARTS.items()}
        measure(NAME, results, parts, asked, kafka.pid)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
