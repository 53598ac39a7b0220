"""Where batch jobs are measured: a folder with HAR's model and its rows, and runs of commands."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import machine
from tests.bench.edge.footprint import children
from tests.bench.meter import sample

ROOT = Path(__file__).parents[3]
TASK, WIDTH, GROUP = "streams.tasks.har:task", 6 * 128, 20_000
ONCE_S, MOST_S = 30.0, 600.0
POLL_S, LOOK_S = 0.02, 0.1  # for a first file, and at the memory


@dataclass(frozen=True)
class Run:
    """A command that has ended."""

    seconds: float
    first_s: float  # until its first output file
    peak_bytes: int  # of all its processes together, each at its own peak
    cpu_s: float  # of all its processes, as they were last seen
    output: str


@dataclass
class Stage:
    """Where all runs take place, one at a time."""

    folder: Path
    rows: int
    repeats: int
    ray: Path | None
    patience_s: float
    processes: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    highest_load: float = 0.0
    runs: int = 0

    @property
    def source(self) -> Path:
        return self.folder / "rows" / "000.parquet"

    @property
    def models(self) -> Path:
        return self.folder / "models" / "har"

    def place(self, name: str) -> Path:
        """A new path for a run's output."""
        self.runs += 1
        return self.folder / "runs" / f"{self.runs:02}-{name}"

    def score(self, source: Path, output: Path, *words: str) -> list[str]:
        """The command that scores a file or folder into Parquet."""
        model = ["--model", str(self.models / "model.twa"), "--trust"]
        named = [*model, str(self.models / "signing.pub"), "--id", "event"]
        state = ["--state", str(self.folder / "state")]
        own = ["--processes", str(self.processes), "--to", str(output)]
        return [_tidewheel(), "score", TASK, str(source), *named, *state, *own, *words]

    def resume(self, output: Path) -> list[str]:
        own = ["--processes", str(self.processes), "--state", str(self.folder / "state")]
        return [_tidewheel(), "jobs", "resume", f"{output}.job", *own]

    def contender(self, name: str, python: Path, output: Path) -> list[str]:
        program = ROOT / "tests" / "bench" / "batch" / "contenders" / f"{name}.py"
        model = str(self.models / "model.onnx")
        return [str(python), str(program), str(self.source), str(output), model,
                str(self.processes)]  # fmt: skip

    def run(
        self,
        command: list[str],
        output: Path,
        pattern: str = "*.parquet",
        environ: Mapping[str, str] | None = None,
        expected: int = 0,
    ) -> Run:
        """Run a command on a quiet machine; its time includes its start and its end."""
        self.patience_s -= machine.wait_until_quiet(None, min(self.patience_s, ONCE_S))
        output.parent.mkdir(exist_ok=True)
        began, busy_s, own_s = time.monotonic(), machine.busy_s(), time.process_time()
        found = _timed(command, output, pattern, {**os.environ, **(environ or {})}, expected)
        # summed by hand: nobody waits for the processes of a run that is killed, or for Ray's
        others_s = machine.busy_s() - busy_s - (time.process_time() - own_s) - found.cpu_s
        self.highest_load = max(self.highest_load, others_s / (time.monotonic() - began))
        return found

    def clear(self, output: Path) -> None:
        """Remove what a run has written, after looking whether every row is there."""
        for place in (output, output.with_name(f"{output.name}.job")):
            shutil.rmtree(place, ignore_errors=True)


def _tidewheel() -> str:
    return str(Path(sys.executable).parent / "tidewheel")


def _timed(
    command: list[str], output: Path, pattern: str, environ: Mapping[str, str], expected: int
) -> Run:
    log = output.with_name(f"{output.name}.log")
    with log.open("w+") as file:
        began, first = time.monotonic(), 0.0
        peaks, cpu_s = dict[int, int](), dict[int, float]()
        looked = began
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=dict(environ))
        while process.poll() is None:
            if time.monotonic() - began > MOST_S:
                process.terminate()
            if not first and output.is_dir() and next(output.glob(pattern), None) is not None:
                first = time.monotonic() - began
            if time.monotonic() > looked + LOOK_S:
                looked = time.monotonic()
                for pid in _family(process.pid):
                    with suppress(OSError, KeyError):
                        seen = sample(pid)
                        peaks[pid], cpu_s[pid] = seen.peak_bytes, seen.cpu_s
            time.sleep(POLL_S)
        seconds = time.monotonic() - began
    text = log.read_text()
    if process.returncode != expected:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    return Run(seconds, first, sum(peaks.values()), sum(cpu_s.values()), text)


def _family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            found += children(pid)
    return found


def rows_in(output: Path) -> int:
    """Return how many rows a run has written."""
    return sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet"))


def write_rows(path: Path, rows: int, check: Callable[[], None] = lambda: None) -> None:
    """Write made-up segments of HAR's shape, uncompressed, GROUP rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    schema = pa.schema([("event", pa.string()), ("segment", pa.list_(pa.float32(), WIDTH))])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, GROUP):
            check()
            count = min(GROUP, rows - first)
            values = noise.standard_normal(count * WIDTH, np.float32)
            names = pa.array([f"e{first + i}" for i in range(count)])
            segments = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
            writer.write_table(pa.table([names, segments], schema=schema), row_group_size=GROUP)


def manifest(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / "_manifest.json").read_text())
    return found
