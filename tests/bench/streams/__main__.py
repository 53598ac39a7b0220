"""`python -m tests.bench.streams [--quick] [--only NAME] --json PATH --markdown PATH`."""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.machine import QUIET, facts
from tests.bench.report import Results, insert, keep, render
from tests.bench.streams.bench import stage
from tests.bench.streams.delay import delay
from tests.bench.streams.scaling import scaling
from tests.bench.streams.subject import FULL, QUICK, Bench
from tests.bench.streams.throughput import others, throughput, workers

PACKAGES = ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka", "kafka-python")
SUBJECTS = {f.__name__: f for f in (throughput, others, scaling, workers, delay)}
# Two workers need a backlog that is not done before the second one is there.
QUICKLY = [name for name in SUBJECTS if name != "workers"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams")
    parser.add_argument("--quick", action="store_true", help="less of everything, under 2 minutes")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="may be repeated")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--markdown", type=Path, help="the page whose section is replaced")
    parser.add_argument("--quix", type=Path, help="a Python that has quixstreams (see Makefile)")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.streams", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    try:
        with stage(folder, patience_s=20 if asked.quick else 300) as place:
            results = Results(facts(command, place.kafka, PACKAGES, "streams", "compose"))
            bench = Bench(place, QUICK if asked.quick else FULL, asked.quix)
            for name in asked.only or (QUICKLY if asked.quick else SUBJECTS):
                began = time.monotonic()
                SUBJECTS[name](bench, results)
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
                keep(asked.json, results)  # a run that is ended early leaves what it has
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.facts["size"] = "quick" if asked.quick else "full"
    results.facts["other load"] = f"at most {bench.highest_load:.0%} of a core during a run" + (
        ": **provisional**" if bench.highest_load > 2 * QUIET else ""
    )
    text = render(results)
    keep(asked.json, results)
    if asked.markdown:
        insert(asked.markdown, "bench-streams", text)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
