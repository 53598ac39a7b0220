"""`python -m tests.bench.edge [--quick] [--only PART]`."""

from functools import partial

from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from tests.bench.command import arguments, command_line, measure, working_folder
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
from tests.bench.pages import begin, finish

NAME = "edge"
PACKAGES = ("onnxruntime", "torch", "numpy", "kafka-python", "pydantic")
PARTS = {f.__name__: f for f in (latency, eager, memory, wire, sustained, installed)}


def main() -> None:
    asked = arguments(NAME, PARTS).parse_args()
    size, patience_s = (QUICK, 20) if asked.quick else (FULL, 120)
    with working_folder() as folder:
        tasks = [load_task(one) for one in (*TASKS.values(), *WIRE_TASKS.values())]
        write_models(tasks, folder / "models")
        edge, train = (make_site(folder / extra, extra) for extra in ("edge", "edge-train"))
        with real_kafka(folder) as kafka:
            stage = Stage(folder, folder / "models", kafka, edge, train, size, patience_s)
            results = begin(NAME, command_line(NAME), kafka.name, PACKAGES)
            for reference in TASKS.values():
                ensure_topics(kafka.settings, topic_specs(load_task(reference).name, 3))
            parts = {name: partial(part, stage) for name, part in PARTS.items()}
            measure(NAME, results, parts, asked, highest=lambda: stage.highest_load)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
