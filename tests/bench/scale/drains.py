"""One backlog through real workers: CPU by process, bytes on the topics, commits, memory."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deltalake import DeltaTable
from kafka import KafkaAdminClient

from streams.kafka.settings import BrokerSettings
from tests.bench.machine import Load
from tests.bench.meter import sample
from tests.bench.streams.bench import ROOT, Stage
from tests.bench.streams.contenders import worker
from tests.bench.streams.contenders.sealed import Log
from tests.bench.streams.feed.plan import Plan
from tests.bench.streams.feed.tasks import SCALING

HOP_US = 1_000_000  # an event a second: 30 in a window of 30 s
SETTLED_S = 30.0
READY_S = 180.0


@dataclass(frozen=True)
class Case:
    """A backlog and who reads it; `live`: it is sent once the workers are ready; `buffer_mb`: the
    workers' bound of waiting messages, 0 for their default."""

    workers: int = 1
    partitions: int = 16
    devices: int = 1000
    rounds: int = 5  # messages of each device
    per_message: int = 10  # rows
    hop_us: int = HOP_US
    live: bool = False
    phase: float | None = None  # of all devices, in hops; None spreads them over a window
    buffer_mb: int = 0


@dataclass(frozen=True)
class Drained:
    """What it took. windows: reports of windows, revisions included; revisions: those of them that
    are not a window's first; topics: bytes by the topic's short name, as the broker keeps them;
    commits: of `scores`."""

    case: Case
    messages: int
    rows: int
    windows: int
    revisions: int
    ready_s: float  # from the workers' start until each owns its partitions
    wall_s: float
    worker_s: float
    broker_s: float  # of them while the workers drained
    sent_s: float  # the broker's, while devices sent; 0 where both were at once
    resident_bytes: int
    peak_bytes: int
    commits: int
    store_bytes: int
    topics: dict[str, int]
    others: float

    @property
    def x(self) -> tuple[float, float, float]:
        return self.messages, self.rows, self.windows


class Bed:
    """Runs cases on one stage, and knows the most that others used the machine meanwhile."""

    def __init__(self, stage: Stage, quick: bool) -> None:
        self.stage, self.quick, self.highest_load = stage, quick, 0.0

    @contextmanager
    def watched(self) -> Iterator[Load]:
        with self.stage.watched() as load:
            yield load
        self.highest_load = max(self.highest_load, load.others)

    def broker_s(self) -> float:
        """CPU seconds of the broker so far; 0 where it is not ours."""
        return sample(self.stage.broker).cpu_s if self.stage.broker is not None else 0.0

    def plan(self, case: Case) -> Plan:
        return self.stage.plan(
            SCALING,
            devices=case.devices,
            rounds=case.rounds,
            per_message=case.per_message,
            hop_us=case.hop_us,
            partitions=case.partitions,
            phase=case.phase,
        )

    def drain(self, case: Case, timeout_s: float = 240.0) -> Drained:
        """Send and drain a case; raise WorkerEnded if that does not come to its end."""
        plan, began = self.plan(case), self.broker_s()
        self.stage.preload(replace(plan, rounds=0) if case.live else plan)
        sent_s = 0.0 if case.live else self.broker_s() - began
        self.stage.wait_until_quiet()
        folder = self.stage.new_folder("scale")
        options = ["--buffer-mb", str(case.buffer_mb)] if case.buffer_mb else []
        running = worker.workers(plan, folder, case.workers, options=options)
        with running as found, self.watched() as load:
            started = time.monotonic()
            worker.wait_until_ready(plan, found, READY_S)
            ready_s = time.monotonic() - started
            before = self.broker_s()
            with _sending(plan, live=case.live):
                drained = worker.drain(plan, found, folder / "store", timeout_s)
            broker_s = self.broker_s() - before
        if not drained.rows:
            raise worker.WorkerEnded("the backlog was done before every worker was ready")
        share = drained.rows / plan.closed_rows  # of several workers one begins first
        scores = folder / "store" / "scores"
        windows, revisions = reports(scores)
        log = Log(scores)
        log.advance()
        return Drained(
            case,
            round(plan.messages * share),
            drained.rows,
            round(windows * share),
            revisions,
            ready_s,
            drained.wall_s,
            drained.cpu_s,
            broker_s,
            sent_s,
            drained.resident_bytes,
            drained.peak_bytes,
            sum(1 for commit in log.commits if commit.rows),
            sum(path.stat().st_size for path in scores.rglob("*.parquet")),
            topic_bytes(self.stage.settings, plan.load_task().name),
            load.others,
        )


@contextmanager
def _sending(plan: Plan, *, live: bool) -> Iterator[None]:
    """Devices that send meanwhile; gone at the end, whether they are done or not."""
    argv = [sys.executable, "-m", "tests.bench.streams.feed.generator", plan.argument()]
    sender = subprocess.Popen(argv, cwd=ROOT) if live else None
    try:
        yield
    finally:
        if sender is not None:
            sender.kill()
            sender.wait()


def reports(scores: Path) -> tuple[int, int]:
    """Return how many reports of windows the rows of a store belong to, and how many of them are
    not their window's first."""
    columns = ["device", "window", "revision"]
    rows = DeltaTable(str(scores)).to_pyarrow_dataset().to_table(columns)
    found = rows.group_by(columns).aggregate([])
    again = sum(1 for number in found.column("revision").to_pylist() if number)
    return found.num_rows, again


def topic_bytes(settings: BrokerSettings, task: str) -> dict[str, int]:
    """Return the bytes of a task's topics on the broker's disk, by short name."""
    with closing(KafkaAdminClient(**settings.client_options())) as admin:
        deadline = time.monotonic() + SETTLED_S
        while True:
            found: dict[str, int] = {}
            for broker in admin.describe_log_dirs():
                for folder in broker["log_dirs"]:
                    for topic in folder["topics"]:
                        name = topic["name"]
                        if name.startswith(f"{task}."):
                            size = sum(one["partition_size"] for one in topic["partitions"])
                            short = name.removeprefix(f"{task}.")
                            found[short] = found.get(short, 0) + size
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)
