"""`python -m tests.bench.release [--quick] [--only NAME,...]`."""

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
from tests.bench.kafka import real_kafka
from tests.bench.machine import load_fact, watched
from tests.bench.pages import begin, finish, keep
from tests.bench.release.cost import cost
from tests.bench.release.drift import drift
from tests.bench.release.judging import judging
from tests.bench.release.recovery import recovery
from tests.bench.release.rollouts.verdicts import verdicts
from tests.bench.release.spread import spread
from tests.bench.release.stage import Stage

PACKAGES = ("onnxruntime", "torch", "numpy", "kafka-python", "cryptography")
TASK = "streams.tasks.har:task"
SECTIONS = {f.__name__: f for f in (spread, cost, drift, judging, verdicts, recovery)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.release")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", type=_chosen, help=f"some of {','.join(SECTIONS)}")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.release", *sys.argv[1:]])
    torch.set_num_threads(1)
    logging.getLogger("federation").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with real_kafka(folder) as kafka:
            stage = Stage(folder, TASK, load_task(TASK), kafka, asked.quick)
            results = begin("release", command, kafka.name, PACKAGES)
            results.facts["size"] = "quick" if asked.quick else "full"
            highest = 0.0
            for name in asked.only or SECTIONS:
                began = time.monotonic()
                with watched(kafka.pid) as load:
                    SECTIONS[name](stage, results)
                highest = max(highest, load.others)
                results.facts["other load"] = load_fact(highest)
                stage.say(f"{name}: {time.monotonic() - began:.0f} s")
                keep("release", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("release", results, whole=not (asked.quick or asked.only))


def _chosen(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
