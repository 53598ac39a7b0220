"""Memory of `tidewheel edge run`, with and without its trainer, and the time to an answer."""

import json
import subprocess

from tests.bench.edge.answers.latency import Phases, train_for
from tests.bench.edge.footprint import Footprint, children, footprint
from tests.bench.edge.stage import Device, Stage
from tests.bench.edge.tasks import HOP_S, TASKS
from tests.bench.kafka import ROOT
from tests.bench.report import Cell, Figure, Goal, Results, Table

MB = 1e6
RING = 2048  # segments that a device keeps
FAST = str(500 * HOP_S)  # 500 segments a second: the ring is soon full


def memory(stage: Stage, results: Results) -> None:
    starts, alone = _starts(stage)
    with stage.edge_run(stage.edge_train, TASKS["segment"], *_words(stage)) as device:
        device.wait(lambda: _ring_is_full(device), "a full ring of samples")
        train_for(device, device.folder.parents[1], Phases(), "training", 0.0)
        (child,) = children(device.pid)
        agent, trainer = footprint(device.pid), footprint(child)
    both = Footprint(
        *(getattr(agent, name) + getattr(trainer, name) for name in Footprint.__dataclass_fields__)
    )
    rows = [
        _cells("agent, [edge]", alone),
        _cells("agent, [edge-train], after a training", agent),
        _cells("its trainer", trainer),
        _cells("both", both),
    ]
    text = (
        "`tidewheel edge run` in a virtualenv with nothing but what the extra brings, with a full "
        f"ring of {RING:,} samples and a broker, from /proc/PID/smaps_rollup. PSS shares out what "
        "several processes map of the same files, and the benchmark's own process maps some: "
        "without it the PSS of an agent alone is nearly its RSS. The device's Python finds its "
        "modules compiled, as pip installs them, and the made-up readings need no numpy.random, "
        "which would count as 8 MB of the agent. A trainer ends after 2 minutes without work."
    )
    columns = ["", "RSS MB", "PSS MB", "private MB"]
    results.tables.append(Table("Memory", text, columns, rows))
    results.tables.append(_imports(stage))
    seconds = Figure.of(starts)
    text = (
        "From the start of the process until its first event is synced in the spool, which is up "
        f"to 50 ms after the answer; {stage.size.starts} starts of `tidewheel edge run`."
    )
    results.tables.append(Table("Start", text, ["starts", "seconds"], [[len(starts), seconds]]))
    results.goals += [
        Goal("memory of the agent without a trainer, RSS, MB", alone.resident / MB, at_most=95),
        Goal("from start to the first answer, s", seconds, at_most=0.35),
    ]


def _starts(stage: Stage) -> tuple[list[float], Footprint]:
    """Seconds of each start; the last device goes on until its ring is full."""
    found: list[float] = []
    for number in range(stage.size.starts):
        with (
            stage.quietly(),
            stage.edge_run(stage.edge, TASKS["segment"], *_words(stage)) as device,
        ):
            found.append(device.first_answer_s())
            if number == stage.size.starts - 1:
                device.wait(lambda device=device: _ring_is_full(device), "a full ring of samples")
                return found, footprint(device.pid)
    raise AssertionError("a start at least")


def _words(stage: Stage) -> list[str]:
    return ["--kafka", stage.kafka.settings.bootstrap, "--speed", FAST, "--drain", "0"]


def _ring_is_full(device: Device) -> bool:
    answer = device.asked()
    return answer is not None and answer.state is not None and answer.state.samples == RING


def _cells(name: str, found: Footprint) -> list[Cell]:
    return [name, found.resident / MB, found.proportional / MB, found.private / MB]


def _imports(stage: Stage) -> Table:
    argv = [str(stage.edge), "-m", "tests.bench.edge.imports"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    rows: list[list[Cell]] = [
        [name, resident / MB, seconds * 1000] for name, resident, seconds in json.loads(done.stdout)
    ]
    text = (
        "Each import in a fresh process, after those above it: what it adds to RSS, and its time."
    )
    return Table("Memory by import", text, ["", "RSS MB", "ms"], rows)
