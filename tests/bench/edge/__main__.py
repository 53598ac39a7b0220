"""`python -m tests.bench.edge [--quick] [--only NAME]`."""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from tests.bench.edge.answers.eager import eager
from tests.bench.edge.answers.latency import latency
from tests.bench.edge.installed import installed
from tests.bench.edge.memory import memory
from tests.bench.edge.model import write_models
from tests.bench.edge.site import make_site
from tests.bench.edge.stage import FULL, QUICK, Stage
from tests.bench.edge.sustained import sustained
from tests.bench.edge.tasks import TASKS, WIRE_TASKS
from tests.bench.edge.wire import wire
from tests.bench.kafka import real_kafka
from tests.bench.machine import load_fact
from tests.bench.pages import begin, finish, keep

PACKAGES = ("onnxruntime", "torch", "numpy", "pyarrow", "kafka-python", "pydantic")
SUBJECTS = {f.__name__: f for f in (latency, eager, memory, wire, sustained, installed)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.edge")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="may be repeated")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.bench.edge", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    size = QUICK if asked.quick else FULL
    try:
        tasks = [load_task(one) for one in (*TASKS.values(), *WIRE_TASKS.values())]
        write_models(tasks, folder / "models")
        edge, train = (make_site(folder / extra, extra) for extra in ("edge", "edge-train"))
        with real_kafka(folder) as kafka:
            patience_s = 20 if asked.quick else 120
            stage = Stage(folder, folder / "models", kafka, edge, train, size, patience_s)
            results = begin("edge", command, kafka.name, PACKAGES)
            for reference in TASKS.values():
                ensure_topics(kafka.settings, topic_specs(load_task(reference).name, 3))
            for name in asked.only or SUBJECTS:
                began = time.monotonic()
                SUBJECTS[name](stage, results)
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
                keep("edge", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.facts["size"] = "quick" if asked.quick else "full"
    results.facts["other load"] = load_fact(stage.highest_load)
    finish("edge", results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
