"""`python -m tests.bench.gains [--quick] [--only NAME,...]`."""

import argparse
import logging
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from streams.contract.task import load_task
from tests.bench.federation.study import FULL, QUICK, TASK, Study
from tests.bench.gains.drifts import drifts
from tests.bench.gains.moved_sensors import moved_sensors
from tests.bench.gains.privacy import privacy
from tests.bench.gains.teachers import teachers
from tests.bench.gains.threats import threats
from tests.bench.gains.ways import ways
from tests.bench.machine import load_fact, watched
from tests.bench.pages import begin, finish, keep
from tests.bench.report import Results

PACKAGES = ("torch", "numpy", "onnxruntime")
Section = Callable[[Study, Results], None]
SECTIONS: Mapping[str, Section] = {
    "drifts": drifts,
    "moved sensors": moved_sensors,
    "teachers": teachers,
    "threats": threats,
    "privacy": privacy,
    "other ways": ways,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gains")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", type=_chosen, help=f"some of {','.join(SECTIONS)}")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.gains", *sys.argv[1:]])
    torch.set_num_threads(1)
    logging.getLogger("federation").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    study = Study(folder, load_task(TASK), QUICK if asked.quick else FULL)
    results, highest = begin("gains", command, "", PACKAGES), 0.0
    results.facts["size"] = "quick" if asked.quick else "full"
    try:
        for name in asked.only or SECTIONS:
            began = time.monotonic()
            with watched() as load:
                SECTIONS[name](study, results)
            highest = max(highest, load.others)
            results.facts["other load"] = load_fact(highest)
            study.say(f"{name}: {time.monotonic() - began:.0f} s")
            keep("gains", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("gains", results, whole=not (asked.quick or asked.only))


def _chosen(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
