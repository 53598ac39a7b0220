"""`python -m tests.bench.federation [--quick] [--only NAME,...]`."""

import argparse
import logging
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from streams.contract.task import load_task
from streams.runtime.disk import cache_folder
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
from tests.bench.machine import load_fact, watched
from tests.bench.pages import begin, finish, keep

PACKAGES = ("torch", "numpy", "flwr")
STAGED = {f.__name__: f for f in (speed, dropouts, size, memory)}  # on real processes
STUDIES = {f.__name__: f for f in (virtual, halves, learning, attacks)}
SECTIONS = [*STAGED, *STUDIES]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.federation")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", type=_chosen, help=f"some of {','.join(SECTIONS)}")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.federation", *sys.argv[1:]])
    torch.set_num_threads(1)
    for name in ("flwr", "federation"):  # they tell of every aggregation
        logging.getLogger(name).setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    task = load_task(TASK)
    study = Study(folder, task, QUICK if asked.quick else FULL)
    try:
        with real_kafka(folder) as kafka:
            stage = Stage(folder, cache_folder(), folder / "people", TASK, task, kafka, asked.quick)
            results = begin("federation", command, kafka.name, PACKAGES)
            for name in task.device_names("fleet"):
                stage.person(name)
            highest = 0.0
            results.facts["size"] = "quick" if asked.quick else "full"
            for name in asked.only or SECTIONS:
                began = time.monotonic()
                with watched(kafka.pid) as load:
                    if name in STAGED:
                        STAGED[name](stage, results)
                    else:
                        STUDIES[name](study, results)
                highest = max(highest, load.others)
                results.facts["other load"] = load_fact(highest)
                study.say(f"{name}: {time.monotonic() - began:.0f} s")
                keep("federation", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("federation", results, whole=not (asked.quick or asked.only))


def _chosen(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
