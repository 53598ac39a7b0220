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
from tests.bench.federation.attacks import attack, attacks
from tests.bench.federation.dropouts import dropouts
from tests.bench.federation.learning import learning
from tests.bench.federation.memory import memory
from tests.bench.federation.speed import size, speed
from tests.bench.federation.stage import Stage
from tests.bench.federation.study import FULL, QUICK, Study
from tests.bench.federation.virtual import halves, virtual
from tests.bench.kafka import real_kafka
from tests.bench.pages import begin, finish, keep

PACKAGES = ("torch", "numpy", "flwr")
TASK = "streams.tasks.har:task"
STUDIES = {f.__name__: f for f in (learning, attack, attacks)}
STAGED = {
    f.__name__: f for f in (speed, dropouts, virtual, halves, size, memory)
}  # with processes and a registry
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
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    task = load_task(TASK)
    study = Study(folder, task, QUICK if asked.quick else FULL)
    try:
        with real_kafka(folder) as kafka:
            stage = Stage(folder, cache_folder(), folder / "people", TASK, task, kafka)
            results = begin("federation", command, kafka.name, PACKAGES)
            results.facts["size"] = "quick" if asked.quick else "full"
            for name in asked.only or SECTIONS:
                began = time.monotonic()
                if name in STAGED:
                    STAGED[name](stage, results)
                else:
                    STUDIES[name](study, results)
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
