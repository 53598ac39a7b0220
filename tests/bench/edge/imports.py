"""What importing the agent's parts costs, each after those before it: `python -m
tests.bench.edge.imports` prints rows of name, memory added, and milliseconds as JSON."""

import importlib
import json
import sys
import time

from tests.bench.edge.footprint import footprint

PARTS = (
    "pydantic", "typer", "rich.console", "numpy", "onnxruntime", "safetensors.numpy",
    "kafka", "cryptography", "psutil", "compose.cli.edge", "edge_client.process",
    "streams.tasks.har",
)  # fmt: skip


def main() -> None:
    rows: list[tuple[str, int, float]] = [("python itself", footprint().resident, 0.0)]
    for name in sys.argv[1:] or PARTS:
        before, began = footprint().resident, time.perf_counter()
        importlib.import_module(name)
        rows.append((name, footprint().resident - before, time.perf_counter() - began))
    print(json.dumps(rows))  # noqa: T201


if __name__ == "__main__":
    main()
