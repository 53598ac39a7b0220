"""`python -m tests.bench.scale [--quick] [--only NAME]`."""

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

from tests.bench.federation.real.processes import adopt_orphans
from tests.bench.machine import load_fact
from tests.bench.pages import begin, finish, keep
from tests.bench.scale.commits import commits
from tests.bench.scale.controller import controller
from tests.bench.scale.drains import Bed, Case
from tests.bench.scale.events import events, workers
from tests.bench.scale.held import held
from tests.bench.scale.needs import million
from tests.bench.scale.rounds import rounds
from tests.bench.streams.bench import stage

PACKAGES = ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka", "flwr")
SUBJECTS = {f.__name__: f for f in (events, workers, held, commits, controller, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="may be repeated")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.scale", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    torch.set_num_threads(1)
    for name in ("flwr", "federation"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with stage(folder, patience_s=10 if asked.quick else 30) as place:
            results = begin("scale", command, place.kafka, PACKAGES)
            bed = Bed(place, asked.quick)
            bed.drain(Case(rounds=2))  # the broker's compiler, and the disk's cache
            for name in asked.only or SUBJECTS:
                began = time.monotonic()
                SUBJECTS[name](bed, results)
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
                results.facts["size"] = "quick" if asked.quick else "full"
                results.facts["other load"] = load_fact(bed.highest_load)
                keep("scale", results)
            if not asked.only:
                million(results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("scale", results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
