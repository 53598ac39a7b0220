"""`python -m tests.bench.streams [--quick] [--only NAME]`."""

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.machine import load_fact
from tests.bench.pages import begin, finish, keep
from tests.bench.streams.bench import stage
from tests.bench.streams.delay import delay
from tests.bench.streams.scaling import scaling
from tests.bench.streams.subject import FULL, QUICK, Bench
from tests.bench.streams.throughput import throughput

PACKAGES = ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka", "kafka-python")
SUBJECTS = {f.__name__: f for f in (throughput, scaling, delay)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams")
    parser.add_argument("--quick", action="store_true", help="less of everything, under 2 minutes")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="may be repeated")
    parser.add_argument("--quix", type=Path, help="a Python that has quixstreams (see Makefile)")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.streams", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes are ended on the way
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with stage(folder, patience_s=20 if asked.quick else 300) as place:
            results = begin("streams", command, place.kafka, PACKAGES)
            bench = Bench(place, QUICK if asked.quick else FULL, asked.quix)
            for name in asked.only or SUBJECTS:
                began = time.monotonic()
                SUBJECTS[name](bench, results)
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
                keep("streams", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.facts["size"] = "quick" if asked.quick else "full"
    results.facts["other load"] = load_fact(bench.highest_load)
    finish("streams", results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
