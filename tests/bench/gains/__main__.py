"""`python -m tests.bench.gains [--quick] [--only PART]`."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from streams.contract.task import load_task
from tests.bench.command import arguments, command_line, measure, quiet, working_folder
from tests.bench.federation.study import FULL, QUICK, TASK, Study
from tests.bench.gains.drift.drifts import drifts
from tests.bench.gains.drift.moved_sensors import moved_sensors
from tests.bench.gains.hostile.privacy import privacy
from tests.bench.gains.hostile.threats import threats
from tests.bench.gains.learning.ways import ways
from tests.bench.gains.teachers import teachers
from tests.bench.pages import begin, finish
from tests.bench.report import Results

NAME = "gains"
PACKAGES = ("torch", "numpy", "onnxruntime")
PARTS: Mapping[str, Callable[[Study, Results], None]] = {
    "drifts": drifts,
    "moved sensors": moved_sensors,
    "teachers": teachers,
    "threats": threats,
    "privacy": privacy,
    "other ways": ways,
}


def main() -> None:
    asked = arguments(NAME, PARTS).parse_args()
    torch.set_num_threads(1)
    quiet("federation")
    with working_folder() as folder:
        study = Study(folder, load_task(TASK), QUICK if asked.quick else FULL)
        results = begin(NAME, command_line(NAME), "", PACKAGES)
        measure(NAME, results, {name: partial(part, study) for name, part in PARTS.items()}, asked)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
