"""What it costs a device to make sure of a version before it answers with it."""

import time
from collections.abc import Callable
from statistics import median

from edge_client.inference.engine import Engine
from streams.contract.artifact import unpack
from streams.contract.weights import delta
from streams.runtime.acceptance import Acceptance
from streams.runtime.disk import write_atomic
from tests.bench.machine import watched
from tests.bench.release.stage import Stage
from tests.bench.report import Results, Table

TIMES, QUICK_TIMES = 200, 20


def cost(stage: Stage, results: Results) -> None:
    """The steps of installing, each by itself, in one process."""
    base = stage.registry.serving()
    assert base is not None
    model = stage.made(base, stage.version(0))
    stage.offer_to_all(model)
    release = stage.registry.last()
    assert release is not None
    keys = [stage.key.public_key()]
    data, small = stage.registry.read(model.model), stage.registry.delta(model.model, base.model)
    path = stage.folder / "cost.twa"
    write_atomic(path, data)
    task, count = stage.task, QUICK_TIMES if stage.quick else TIMES
    accepted = stage.folder / "accepted.json"

    def accept() -> None:
        accepted.unlink(missing_ok=True)
        Acceptance(accepted, task, keys).accept(release)

    steps: dict[str, Callable[[], object]] = {
        "read the file": path.read_bytes,
        "accept the decision: signature, chain, written down": accept,
        "the artifact out of its delta": lambda: delta.apply(small, base.files, keys),
        "unpack: signature and digests": lambda: unpack(
            data, keys, task=task.name, task_version=task.version, digest=model.digest
        ),
        "engine and self-test": lambda: Engine(task, model),
        "write it (fsync)": lambda: write_atomic(path, data),
    }
    with watched(stage.kafka.pid) as load:
        rows = [[name, *_timed(step, count)] for name, step in steps.items()]
    read = rows[0][1]
    rows = [[*row, row[1] / read] for row in rows]  # type: ignore[operator]
    results.tables.append(
        Table(
            "What verifying costs a device",
            f"HAR's model: {len(data):,} bytes, its delta {len(small):,}; {count} times each, on "
            "one thread, on this machine. Reading alone is what a device would do that trusts what "
            "lies there. Others' load: "
            f"{load.others:.0%}.",
            ["step", "p50, ms", "p95, ms", "times reading"],
            rows,  # type: ignore[arg-type]
        )
    )


def _timed(step: Callable[[], object], count: int) -> tuple[float, float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        took.append(1000 * (time.perf_counter() - began))
    return median(took), sorted(took)[int(0.95 * (count - 1))]
