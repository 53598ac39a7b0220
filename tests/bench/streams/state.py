"""What a device costs a worker in memory, weighed in this process by tracemalloc."""

import gc
import hashlib
import tracemalloc

import numpy as np

from streams.contract.task import Task
from streams.worker.scoring.drift_watch import DriftWatch, WindowDrift
from streams.worker.windows.partition import PartitionState, StorePosition
from tests.bench.streams.feed.generator import Source
from tests.bench.streams.feed.plan import ORIGIN_US
from tests.bench.streams.feed.teacher import reference

WINDOWS = 12  # in the history of each device
ROWS = 23  # in a window
MANY = 1_000_000


def bytes_per_device(task: Task, devices: int = 1000) -> tuple[int, int]:
    """(of the partition's state, of the drift watch) for a device without open rows and with 12
    windows behind it, all of its messages sealed."""
    names = [f"device-{number:05d}" for number in range(devices)]
    state, watch = PartitionState(0, StorePosition()), DriftWatch(task, reference(task))
    source, texts = Source(task, ROWS), _history(task)
    _play(task, state, source, ["warm-up"], 0)  # what is made once is no device's
    watch.restore({"warm-up": texts})
    gc.collect()
    tracemalloc.start()
    try:
        _play(task, state, source, names, 1)
        gc.collect()
        states = tracemalloc.get_traced_memory()[0]
        watch.restore(dict.fromkeys(names, texts))
        gc.collect()
        both = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return states // devices, (both - states) // devices


def _play(task: Task, state: PartitionState, source: Source, names: list[str], turn: int) -> None:
    """The devices' windows, each sealed, closed by silence, before the next ones begin."""
    for k in range(WINDOWS):
        now_s = 1e6 * (turn * WINDOWS + k)
        times = ORIGIN_US + k * task.window_us + np.arange(ROWS) * (task.window_us // ROWS)
        for number, name in enumerate(names):
            message = state.track((turn * WINDOWS + k) * MANY + number, None)
            assert message is not None
            state.add_events(task, message, source.events(name, k * ROWS, times), now_s)
        state.queue_due(now_s + 1e5)
        while closed := state.take_due(MANY):
            for window in closed:
                state.position.newest[window.device] = window.start
                state.seal(window.pieces)
        state.acknowledgeable()


def _history(task: Task) -> list[tuple[int, str]]:
    """The column `drift` of one device's last windows: rows spread evenly over each feature."""
    ref = reference(task)
    name = hashlib.sha256(ref.encode()).hexdigest()[:16]
    noise = np.random.default_rng(1)
    found = []
    for k in range(WINDOWS):
        counts: list[int] = []
        for feature in ref.features:
            cells = len(feature.counts)
            counts += noise.multinomial(ROWS, np.full(cells, 1 / cells)).tolist()
        text = WindowDrift(reference=name, counts=counts, report=None)
        found.append((ORIGIN_US + k * task.window_us, text.encode().decode()))
    return found
