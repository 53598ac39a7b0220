"""A teacher's artifact, made-up events and real worker processes for the tests of the worker."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from streams.contract.artifact import DRIFT, WEIGHTS, Manifest, pack
from streams.contract.events.batches import EventColumns, columns_of
from streams.contract.events.labels import LabelBatch, label_schema
from streams.contract.events.messages import (
    Drop,
    Headers,
    encode_drop,
    encode_label_lines,
    encode_labels,
)
from streams.contract.events.records import EventBatch, decode_scores, encode_events
from streams.contract.task import Task, load_task
from streams.contract.topics import topic_name
from streams.contract.window_report import WindowReport
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received, partition_of
from streams.kafka.settings import BrokerSettings
from streams.learning.drift_reference import Feature, Reference, cells_of, frozen_edges, observe
from streams.learning.learning import build_teacher, to_safetensors
from streams.runtime.trust import create_key
from streams.worker.store.tables import SCORES, Place, has_table, open_table
from tests.rig.asked import asked
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.forks import ROOT, Forked
from tests.rig.processes.polling import until as until
from tests.rig.processes.running import note

SECOND = 1_000_000
PARTITIONS = 2


def batch(
    device: str,
    first: int,
    times_s: list[float],
    *,
    task: Task = tiny,
    epoch: str = "e1",
    shift: float = 0.0,
) -> EventBatch:
    """Events at the given seconds, with outputs, segments and some labels that their seqs fix; the
    segments' values have the mean `shift`."""
    seqs = np.arange(first, first + len(times_s))
    outputs = np.stack([np.sin(seqs + k) for k in range(task.outputs)], axis=1).astype(np.float32)
    noise = np.random.default_rng(first)
    rows = event_rows(
        task,
        first=first,
        times=np.array([round(t * SECOND) for t in times_s], np.int64),
        model="1-aaaaaaaa",
        outputs=outputs,
        labels=[np.full(task.label_size, s % task.outputs) if s % 3 == 0 else None for s in seqs],
        segments=None
        if task.upload == "prediction"
        else noise.normal(shift, size=(len(seqs), *task.segment_shape)).astype(np.float32),
    )
    return EventBatch(device, epoch, first, rows)


def events(
    device: str, first: int, times_s: list[float], *, task: Task = tiny, epoch: str = "e1"
) -> EventColumns:
    """The same as arrays."""
    rows = batch(device, first, times_s, task=task, epoch=epoch).rows
    return columns_of(device, epoch, first, rows)


def labels(
    device: str,
    first: int,
    spans_s: list[tuple[float, float]],
    *,
    task: Task = tiny,
    epoch: str = "l1",
    classes: Sequence[int] = (),
    told_s: float = 1e6,
    events: Sequence[int] = (),
) -> LabelBatch:
    """Labels of the given seconds, from and to, with classes that their numbers fix; `events`: the
    seq of the one event that each is of."""
    rows: list[dict[str, object]] = [
        {
            "from": round(begin * SECOND),
            "to": round(end * SECOND),
            "label": [float(classes[i] if classes else (first + i) % task.outputs)],
            "told": round(told_s * SECOND),
            "source": "outcome",
            "event_epoch": "e1" if events else None,
            "event_seq": events[i] if events else None,
        }
        for i, (begin, end) in enumerate(spans_s)
    ]
    return LabelBatch(device, epoch, first, pa.RecordBatch.from_pylist(rows, label_schema(task)))


def json_events(record: EventBatch, *, task: Task = tiny, numbered: bool = False) -> list[Any]:
    """The same events as a producer that is no device writes them as JSON; `numbered` with its own
    epoch and seqs."""
    found = []
    for row in record.rows.to_pylist():
        label = row["label"] and (int(row["label"][0]) if task.classes else row["label"])
        event = {"time": row["time"].isoformat(), "outputs": row["outputs"], "label": label}
        event["model"] = row["model"]
        if row["segment"] is not None:
            event["segment"] = np.reshape(row["segment"], task.segment_shape).tolist()
        found.append(event | ({"epoch": record.epoch, "seq": row["seq"]} if numbered else {}))
    return found


def encoded(record: EventBatch | Drop | LabelBatch) -> tuple[bytes, bytes, Headers]:
    """A record as a message of `events`."""
    if isinstance(record, Drop):
        return encode_drop(record)
    if isinstance(record, LabelBatch):
        body = encode_label_lines([_told(row) for row in record.rows.to_pylist()])
        return encode_labels(record.device, record.epoch, record.first, body)
    return encode_events(record)


def _told(row: dict[str, Any]) -> dict[str, object]:
    """A row of labels as its line."""
    times = {name: round(row[name].timestamp() * SECOND) for name in ("from", "to", "told")}
    return {name: value for name, value in {**row, **times}.items() if value is not None}


def counted(edges: Sequence[float] | np.ndarray, values: Sequence[float | None]) -> np.ndarray:
    """The counts of a feature's cells."""
    cells = cells_of(np.asarray(edges), np.asarray(values, np.float64).reshape(-1))
    return np.bincount(cells, minlength=len(edges) + 3)


def reference(task: Task = tiny, *, minimum: int = 20, windows: int = 3) -> Reference:
    """A reference for drift that fits the segments and answers of `batch`."""
    noise = np.random.default_rng(0)
    seqs = np.arange(2000)
    outputs = np.stack([np.sin(seqs + k) for k in range(task.outputs)], axis=1)
    features = []
    for (channel, kind), values in observe(
        task, noise.normal(size=(2000, *task.segment_shape)), outputs
    ).items():
        edges = frozen_edges(task, kind, values)
        counts = counted(edges, list(values)).tolist()
        ordered = kind != "answer" or not task.classes
        features.append(
            Feature(
                channel=channel, kind=kind, ordered=ordered, edges=edges.tolist(), counts=counts
            )
        )
    return Reference(minimum=minimum, windows=windows, independent=0.5, features=features)


def write_teacher(task: Task, folder: Path, *, drift: bytes | None = None) -> tuple[Path, Path]:
    """An untrained teacher's artifact and the public key that signed it."""
    key = create_key(folder / "key.pem")
    manifest = Manifest(
        kind="teacher", task=task.name, task_version=task.version, number=1, created_us=1, key="",
        files=[],
    )  # fmt: skip
    weights = to_safetensors(build_teacher(task).state_dict())
    files = {WEIGHTS: weights} if drift is None else {WEIGHTS: weights, DRIFT: drift}
    (folder / "teacher.tw").write_bytes(pack(manifest, files, key))
    return folder / "teacher.tw", folder / "key.pub"


START = """
import json, sys
from pathlib import Path
from streams.kafka.settings import BrokerSettings
from streams.contract.errors import TidewheelError
from streams.runtime.process import configure_logging
from streams.worker.app import run
from streams.worker.settings import WorkerSettings
from streams.worker.store.tables import place_of
configure_logging()
task, bootstrap, store, teacher, key, instance, partitions, options = sys.argv[1:]
try:
    given = dict(teacher=Path(teacher), instance=instance, partitions=int(partitions))
    given |= json.loads(options)
    run(WorkerSettings(task=task, broker=BrokerSettings.at(bootstrap), store=place_of(store),
                       workers=Path(key).parent / "workers",
                       trusted=(Path(key),), **given))
except TidewheelError as exc:
    sys.exit(f"error: {exc}")
"""


@dataclass
class Fleet:
    """A task of its own on a real broker, its store, and the workers that serve it."""

    broker: BrokerSettings
    folder: Path
    task: Task
    partitions: int = PARTITIONS
    # More of WorkerSettings for each worker that is started, by the setting's name.
    options: dict[str, int | float | str | None] = field(default_factory=lambda: {"flush_s": 0.1})
    place: str | None = None  # of the store; None: a folder
    workers: list[Forked] = field(default_factory=list)
    sent: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _producer: Producer | None = None
    _scores: DeltaTable | None = None

    @property
    def store(self) -> Place:
        return self.place or self.folder / "store"

    @property
    def producer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(self.broker)
        return self._producer

    def start(self, instance: str = "w0", failpoint: str = "") -> Forked:
        """A worker process; its log is `<instance>.log`."""
        task_file = self.folder / "task.py"
        argv: list[object] = [f"{task_file}:task", self.broker.bootstrap, self.store]
        argv += [self.folder / "teacher.tw"]
        argv += [self.folder / "key.pub", instance, self.partitions, json.dumps(self.options)]
        env = {**os.environ, "TIDEWHEEL_FAILPOINT": failpoint}
        words, path = (
            [sys.executable, "-c", START, *map(str, argv)],
            self.folder / f"{instance}.log",
        )
        with path.open("ab") as log:
            process = Forked(
                words, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        note(process, words, path)
        self.workers.append(process)
        return process

    def ready(self, instance: str, partitions: list[int], since: int = 0) -> None:
        """Wait until the worker says that it has exactly these partitions."""
        line = f"worker {instance}: ready, partitions {partitions}"

        def said() -> bool:
            self.check_alive()
            return line in self.log(instance)[since:]

        until(said, line)

    def check_alive(self) -> None:
        """Fail if no worker runs, with the ends of their logs."""
        alive = [process.poll() is None for process in self.workers]
        logs = sorted(self.folder.glob("w*.log"))
        assert any(alive), "\n".join(f"{path}\n{self.log(path.stem)[-3000:]}" for path in logs)

    def log(self, instance: str) -> str:
        path = self.folder / f"{instance}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def send(self, record: EventBatch | Drop | LabelBatch) -> None:
        """Send one record and wait until it is safe."""
        topic = topic_name(self.task.id, "events")
        key, value, headers = encoded(record)
        if isinstance(record, EventBatch):
            seqs = self.sent.setdefault((record.device, record.epoch), set())
            seqs.update(range(record.first, record.last + 1))
        self.producer.put(topic, key, value, headers)

    def count(self) -> int:
        """How many rows `scores` has, with repetitions: the table's log alone is read."""
        if self._scores is None:
            if not has_table(self.store, SCORES):
                return 0
            self._scores = open_table(self.store, SCORES)
        self._scores.update_incremental()
        return int(self._scores.count())

    def scored(self) -> list[tuple[str, str, int]]:
        """(device, epoch, seq) of every row in the store, with repetitions."""
        return asked(self.store, "select device, epoch, seq from scores")

    def labels(self) -> list[tuple[str, str, int]]:
        """(device, epoch, number) of every label in the store, with repetitions."""
        return asked(self.store, "select device, epoch, number from labels")

    def wait_until_scored(self, timeout_s: float = 60.0) -> None:
        """Wait until every event sent is in the store, and check that each is there once."""
        wanted = {(d, e, s) for (d, e), seqs in self.sent.items() for s in seqs}

        def all_scored() -> bool:
            if self.count() >= len(wanted):
                return True
            self.check_alive()
            return False

        until(all_scored, f"{len(wanted)} events scored", timeout_s)
        found = self.scored()
        assert len(found) == len(set(found))
        assert set(found) == wanted

    def read(self, topic: str) -> list[Received]:
        reader = Reader(self.broker, [topic_name(self.task.id, topic)])
        try:
            return reader.read_to_end()
        finally:
            reader.close()

    def end(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        if self._producer is not None:
            self._producer.close()


@contextlib.contextmanager
def fleet(
    broker: BrokerSettings,
    folder: Path,
    partitions: int = PARTITIONS,
    source: str = "recorded",
    idle_close_s: float = 2.0,
    **changes: str,
) -> Iterator[Fleet]:
    """A Fleet whose task has a name of its own, so that its topics collide with nobody's."""
    task = load_task(own_task(folder, source, idle_close_s, **changes))
    write_teacher(task, folder)
    made = Fleet(broker, folder, task, partitions)
    try:
        yield made
    finally:
        made.end()


def device_on(partition: int, partitions: int = PARTITIONS) -> str:
    """A device whose events go to `partition`."""
    return next(n for i in range(99) if partition_of(n := f"d{i}", partitions) == partition)


def stop(process: Forked) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def decoded_scores(
    messages: list[Received],
) -> dict[tuple[str, str, str, str], list[pa.RecordBatch]]:
    """The `scores` messages by (device, window, revision, part)."""
    found: dict[tuple[str, str, str, str], list[pa.Table]] = {}
    for message in messages:
        headers = dict(message.headers)
        key = tuple(headers[n].decode() for n in ("device", "window", "revision", "part"))
        assert message.key == headers["device"]
        rows = decode_scores(message.value, message.headers)
        found.setdefault(key, []).append(rows)  # type: ignore[arg-type]
    return found


def decoded_windows(messages: list[Received]) -> dict[tuple[str, int, int], list[WindowReport]]:
    """The `windows` messages by (device, window, revision)."""
    found: dict[tuple[str, int, int], list[WindowReport]] = {}
    for message in messages:
        report = WindowReport.decode(message.value)
        assert message.key == report.device.encode()
        found.setdefault((report.device, report.window_us, report.revision), []).append(report)
    return found


def all_published(served: Fleet) -> bool:
    """Whether every row in the store is on `scores`, and in a report on `windows`."""
    count = served.count()
    reports = decoded_windows(served.read("windows"))
    if sum(copies[0].events for copies in reports.values()) != count:
        return False
    scores = decoded_scores(served.read("scores"))
    return bool(sum(copies[0].num_rows for copies in scores.values()) == count)


def check_topics(served: Fleet) -> None:
    """Each window's revision is on both topics, always with the same content; the rows add up."""
    scores = decoded_scores(served.read("scores"))
    windows = decoded_windows(served.read("windows"))
    of_events = {name for name, reports in windows.items() if reports[0].events}
    assert {(d, int(w), int(r)) for d, w, r, _ in scores} == of_events
    rows = []
    for copies in scores.values():
        assert all(copy.equals(copies[0]) for copy in copies)
        rows += [(r["device"], r["epoch"], r["seq"]) for r in copies[0].to_pylist()]
    for reports in windows.values():
        assert all(report == reports[0] for report in reports)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(served.scored())
    assert sum(reports[0].events for reports in windows.values()) == len(rows)
