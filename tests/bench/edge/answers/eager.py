"""The same agent with torch in onnxruntime's place."""

import json
import statistics
import subprocess

from tests.bench.edge.answers.latency import FULL_SPEED, PACES, SLOW, UP, Timed, drive
from tests.bench.edge.stage import Stage
from tests.bench.kafka import ROOT
from tests.bench.report import Cell, Results, Table

MB = 1e6
ENGINES = {"onnxruntime": "onnxruntime", "eager": "torch"}  # to the module that is imported


def eager(stage: Stage, results: Results) -> None:
    rows: list[list[Cell]] = []
    for engine, module in ENGINES.items():
        import_s, import_bytes = _import(stage, module)
        for pace, title in ((SLOW, PACES[SLOW]), (FULL_SPEED, PACES[FULL_SPEED])):
            with stage.quietly() as load:
                run = drive(stage, UP, pace, engine, slices=1, trains=False)
            found = Timed.of(run.phases, "idle", run.timed)
            assert found is not None
            rows.append([
                f"{module}, {title}", len(found.answers), found.answers.quantile(0.5),
                found.answers.quantile(0.9), found.bare.quantile(0.5), found.bare.quantile(0.9),
                run.memory.resident / MB, run.first_s, import_s * 1000,
                import_bytes / MB, f"{load.others:.0%}",
            ])  # fmt: skip
    text = (
        "The agent, and the agent with the task's own torch module, eager, in inference mode, on "
        "one thread. Both are the driver's processes with a broker; no training. Import: the "
        "library alone after numpy, in a fresh process, the median. In brackets: as above."
    )
    columns = ["", "answers", "p50 us", "p90 us", "bare p50", "bare p90", "RSS MB"]
    columns += ["s to the first answer", "import ms", "import MB", "others' load"]
    results.tables.append(Table("onnxruntime and torch", text, columns, rows))


def _import(stage: Stage, module: str) -> tuple[float, int]:
    """Seconds and bytes that importing a library takes."""
    argv = [str(stage.edge_train), "-m", "tests.bench.edge.imports", "numpy", module]
    found: list[tuple[float, int]] = []
    for _ in range(max(1, stage.size.repeats)):
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True, timeout=60)
        _, resident, seconds = json.loads(done.stdout)[-1]
        found.append((seconds, resident))
    seconds, sizes = zip(*found, strict=True)
    return statistics.median(seconds), statistics.median_low(sizes)
