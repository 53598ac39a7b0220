"""`python -m tests.bench.streams [--quick] [--only PART] [--quix PYTHON]`."""

from functools import partial
from pathlib import Path

from tests.bench.command import arguments, command_line, measure, working_folder
from tests.bench.pages import begin, finish
from tests.bench.streams.bench import stage
from tests.bench.streams.delay import delay
from tests.bench.streams.scaling import scaling
from tests.bench.streams.subject import FULL, QUICK, Bench
from tests.bench.streams.throughput import throughput

NAME = "streams"
PACKAGES = ("torch", "numpy", "pyarrow", "deltalake", "faust-streaming", "aiokafka", "kafka-python")
PARTS = {f.__name__: f for f in (throughput, scaling, delay)}


def main() -> None:
    parser = arguments(NAME, PARTS)
    parser.add_argument("--quix", type=Path, help="a Python that has quixstreams (see Makefile)")
    asked = parser.parse_args()
    with working_folder() as folder, stage(folder, patience_s=20 if asked.quick else 300) as place:
        results = begin(NAME, command_line(NAME), place.kafka, PACKAGES)
        bench = Bench(place, QUICK if asked.quick else FULL, asked.quix)
        parts = {name: partial(part, bench) for name, part in PARTS.items()}
        measure(NAME, results, parts, asked, highest=lambda: bench.highest_load)
    finish(NAME, results, whole=not (asked.quick or asked.only))


if __name__ == "__main__":
    main()
