"""What is measured: each figure is the product beside a bare loop that does the same work, in turns
in one process, or bytes, which are always the same."""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import safetensors.numpy
import torch

from edge_client.inference.engine import Engine
from edge_client.spool.limits import SpoolLimits
from edge_client.spool.queue import Spool
from federation.admission.admission import Round, admit
from federation.admission.update import Update
from federation.aggregation import strategies
from federation.bootstrap.onnx_export import export_graph
from federation.bootstrap.self_test import make_probe
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, Manifest
from streams.contract.events.records import as_columns, decode_event_message, encode_events
from streams.contract.task import Task, load_task
from streams.learning.clipping import update_norm
from streams.worker.windows.partition import PartitionState, StorePosition
from tests.bench.edge.model import filled
from tests.bench.edge.tasks import predictions, segments
from tests.bench.events import kafka_bytes, sample
from tests.bench.streams.feed.generator import Source

TURNS, TURN_S = 9, 0.05
TASK = "streams.tasks.har:task"
MEMORY = "/dev/shm"
HELP = "from compose.cli.main import main; main()"
Ratio = Callable[[], float]


def ratios() -> Iterator[tuple[str, Ratio]]:
    """Yield the name of each figure, less is better, and what measures it."""
    torch.set_num_threads(1)
    yield "bytes: one prediction a message", lambda: _bytes(predictions, 1)
    yield "bytes: 12 predictions a message", lambda: _bytes(predictions, 12)
    yield "device: an answer, to onnxruntime", _answer
    yield "device: a frame of 12 events in the spool, to write and fsync", _frame
    for task in (predictions, segments):
        yield f"events of 512 {task.upload}s there and back, to Arrow", partial(_events, task)
    yield "worker: a row into a window and out of it, to grouping by numpy", _windows
    yield "round: an update admitted and averaged, to numpy's mean", _round
    yield "command line: --help, to python -c pass", partial(_command, HELP, "--help")
    yield "import tidewheel, to python -c pass", partial(_command, "import tidewheel")


def beside(ours: Callable[[], object], bare: Callable[[], object]) -> float:
    """Return the CPU time of `ours` to that of `bare`: the least of turns that take turns."""
    calls = [_calls(each) for each in (ours, bare)]
    least = [float("inf")] * 2
    for _ in range(TURNS):
        for i, each in enumerate((ours, bare)):
            began = time.process_time()
            for _ in range(calls[i]):
                each()
            least[i] = min(least[i], (time.process_time() - began) / calls[i])
    return least[0] / least[1]


def _calls(call: Callable[[], object]) -> int:
    call()
    began = time.perf_counter()
    call()
    return max(1, round(TURN_S / max(time.perf_counter() - began, 1e-7)))


def _bytes(task: Task, count: int) -> float:
    return kafka_bytes(*encode_events(sample(task, count), 1)) / count


def _answer() -> float:
    task = load_task(TASK)
    torch.manual_seed(0)
    model = task.build_model().eval()
    graph = export_graph(task, model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    about = Manifest(
        task=task.name, task_version=task.version, number=1, created_us=1, key="", files=[]
    )
    probe = make_probe(graph, state, np.ones((8, *task.segment_shape), np.float32))
    files = {GRAPH: graph, WEIGHTS: safetensors.numpy.save(state), PROBE: probe}
    engine = Engine(task, Artifact(about, "", files))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(filled(graph, state), options)
    name, segment = session.get_inputs()[0].name, np.ones(task.segment_shape, np.float32)
    return beside(lambda: engine.run(segment), lambda: session.run(None, {name: segment[None]}))


def _frame() -> float:
    """In memory where there is such a folder: a disk takes as long as it likes to sync."""
    payload = encode_events(sample(predictions, 12), 1)[1]
    with tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
        spool = Spool(Path(folder) / "spool", SpoolLimits.under(1 << 30, None, "oldest"))
        with (Path(folder) / "bare").open("wb") as file:

            def bare() -> None:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())

            return beside(lambda: spool.append(12, payload, mark=0), bare)


def _events(task: Task) -> float:
    batch = sample(task, 512)

    def ours() -> object:
        return decode_event_message(task, *encode_events(batch, 1))

    def bare() -> object:
        out = io.BytesIO()
        with pa.ipc.new_stream(out, batch.rows.schema) as writer:
            writer.write_batch(batch.rows)
        with pa.ipc.open_stream(out.getvalue()) as reader:
            return reader.read_all()

    return beside(ours, bare)


def _windows() -> float:
    """Twenty devices, ten windows each, of 23 rows."""
    task = load_task(TASK)
    rows, devices, windows = 23, [f"d{n}" for n in range(20)], 10
    source = Source(task, rows)
    step = task.window_us // rows
    batches = [
        source.events(name, k * rows, k * task.window_us + np.arange(rows) * step)
        for k in range(windows)
        for name in devices
    ]
    decoded = [as_columns(batch) for batch in batches]  # as a worker has them

    def ours() -> None:
        state = PartitionState(0, StorePosition())
        for offset, events in enumerate(decoded):
            message = state.track(offset, None)
            assert message is not None
            state.add_events(task, message, events, 0.0)
        state.queue_due(1e6)
        while closed := state.take_due(1_000):
            for window in closed:
                state.position.newest[window.device] = window.start
                state.seal(window.pieces)

    def bare() -> None:
        for batch in batches:
            times = batch.rows.column("time").cast(pa.int64()).to_numpy()
            starts = times // task.window_us
            for start in np.unique(starts):
                np.flatnonzero(starts == start)

    return beside(ours, bare)


def _round() -> float:
    task = load_task(TASK)
    torch.manual_seed(0)
    sent = {name: value.numpy() for name, value in sorted(task.build_model().state_dict().items())}
    noise = np.random.default_rng(0)

    def moved(value: np.ndarray) -> np.ndarray:
        if value.dtype.kind != "f":
            return value
        return (value + 0.01 * noise.random(value.shape)).astype(value.dtype)

    updates = [
        Update(f"d{n}", task.name, task.version, "1", 100, {k: moved(v) for k, v in sent.items()})
        for n in range(16)
    ]
    norms = [update_norm(update.weights, sent) for update in updates]

    def ours() -> object:
        expected = Round(task.name, task.version, "1", sent, norms=norms)
        assert all(admit(update, expected) is None for update in updates)
        return strategies.make("fedavg").aggregate(updates, sent)

    def bare() -> object:
        return {k: np.mean([u.weights[k] for u in updates], axis=0) for k in sent}

    return beside(ours, bare)


def _command(code: str, *words: str) -> float:
    ours = min(_cpu_s(code, *words) for _ in range(7))
    return ours / min(_cpu_s("pass") for _ in range(7))


def _cpu_s(code: str, *words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
