"""`tidewheel worker` on backlogs, and how far its store has come."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pyarrow.parquet as pq
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from benchmarks.frame import Bench
from benchmarks.support.backlog import Plan
from benchmarks.support.processes import Failed, Usage, module, running, tidewheel, until, usage
from streams.contract.task import load_task
from streams.contract.topics import topic_specs, worker_group
from streams.kafka.admin import ensure_topics
from streams.learning.drift_reference import MINIMUM, WINDOWS
from tests.rig.processes import workers as support

LOOK_S = 0.02
NAMES = tuple(f"bench-{number}" for number in range(4))


def plan_of(bench: Bench, task: str, **about: object) -> Plan:
    """Return a backlog of a task; its untrained teacher, with a drift reference, is written once:
    it is as fast as a trained one."""
    found, folder = load_task(task), bench.folder / f"teacher-{load_task(task).name}"
    plan = Plan(task, bench.kafka.bootstrap, str(folder), **about)  # type: ignore[arg-type]
    if not plan.teacher.exists():
        folder.mkdir()
        reference = support.reference(found, minimum=MINIMUM, windows=WINDOWS)
        made, _ = support.write_teacher(found, folder, drift=reference.encode())
        made.rename(plan.teacher)
    return plan


def fill(bench: Bench, plan: Plan, *, empty: bool = False) -> None:
    """Put a backlog on its topics, which are made anew; with `empty` only make them."""
    specs = topic_specs(plan.load_task().id, plan.partitions)
    names = {spec.name for spec in specs}
    admin = KafkaAdminClient(**bench.kafka.client_options())
    try:
        if there := sorted(names & set(admin.list_topics())):
            admin.delete_topics(there)
        until("the topics are deleted", lambda: not names & set(admin.list_topics()))
    finally:
        admin.close()
    ensure_topics(bench.kafka, specs)
    if not empty:
        module("benchmarks.support.backlog", plan.encode())


@dataclass(frozen=True)
class Commit:
    """A version of a Delta table: milliseconds since 1970, and the rows and files it added."""

    time_ms: int
    rows: int
    files: tuple[str, ...]


class Log:
    """Reads each new file of a Delta table's log once."""

    def __init__(self, table: Path) -> None:
        self.table, self.rows = table, 0
        self.commits: list[Commit] = []

    def advance(self) -> int:
        """Take in what is new; return the rows in all."""
        while True:
            path = self.table / "_delta_log" / f"{len(self.commits):020d}.json"
            if not path.exists():
                return self.rows
            rows, files, time_ms = 0, [], 0
            for line in path.read_text().splitlines():
                action = json.loads(line)
                time_ms = action.get("commitInfo", {}).get("timestamp", time_ms)
                if (added := action.get("add")) and added["dataChange"]:  # not of a compaction
                    rows += json.loads(added["stats"])["numRecords"]
                    files.append(added["path"])
            self.commits.append(Commit(time_ms, rows, tuple(files)))
            self.rows += rows

    def stored(self) -> dict[tuple[str, int], int]:
        """Return when each (device, window) was stored first, milliseconds since 1970."""
        found: dict[tuple[str, int], int] = {}
        for commit in self.commits:
            for name in commit.files:
                rows = pq.read_table(self.table / name, columns=["device", "window"])
                windows = rows.column("window").cast("int64").to_pylist()
                for key in zip(rows.column("device").to_pylist(), windows, strict=True):
                    found.setdefault(key, commit.time_ms)
        return found


@dataclass(frozen=True)
class Worker:
    instance: str
    process: "Popen[bytes]"
    log: Path

    def partitions(self) -> int:
        """How many partitions it says that it owns; 0 as long as it is not ready."""
        found = 0
        for line in self.log.read_text(errors="replace").splitlines():
            if f"worker {self.instance}: ready, partitions" in line:
                found = len([p for p in line.rpartition("[")[2].rstrip("]").split(",") if p])
        return found


@contextmanager
def workers(
    bench: Bench, plan: Plan, count: int = 1, env: Mapping[str, str] | None = None
) -> Iterator[tuple[list[Worker], Path]]:
    """`count` workers that own all partitions, on an empty store, from the topic's beginning."""
    _forget_group(plan)
    folder, found = bench.place("worker"), list[Worker]()
    with ExitStack() as stack:
        for name in NAMES[:count]:
            argv = tidewheel(
                "worker", plan.task, "--kafka", plan.bootstrap, "--instance", name,
                "--store", str(folder / "store"), "--teacher", str(plan.teacher),
                "--trust", str(plan.key), "--state", str(folder), "--partitions",
                str(plan.partitions),
            )  # fmt: skip
            log = folder / f"{name}.log"
            found.append(Worker(name, stack.enter_context(running(argv, log, env)), log))

        def ready() -> bool:
            owned = [worker.partitions() for worker in found]
            return all(owned) and sum(owned) == plan.partitions

        until("the workers own all partitions", ready, 120, found[0].process, found[0].log, LOOK_S)
        yield found, folder / "store"


@dataclass(frozen=True)
class Drained:
    """Workers on a backlog, from ready to the last row in the store."""

    rows: int
    wall_s: float
    before: list[Usage]
    after: list[Usage]

    @property
    def cpu_s(self) -> float:
        pairs = zip(self.before, self.after, strict=True)
        return sum(after.cpu_s - before.cpu_s for before, after in pairs)

    @property
    def peak(self) -> int:
        return sum(one.peak for one in self.after)


def drain(
    bench: Bench,
    plan: Plan,
    count: int = 1,
    env: Mapping[str, str] | None = None,
    within_s: float = 240.0,
) -> tuple[Drained, Log]:
    """Wait until the store has all rows of closed windows. What it has when all workers are ready
    does not count."""
    with workers(bench, plan, count, env) as (found, store):
        log = Log(store / "scores")
        began, before, rows = time.monotonic(), _usages(found), log.advance()
        worker = found[0]
        until("all rows are in the store", lambda: log.advance() >= plan.closed_rows, within_s,
              worker.process, worker.log, LOOK_S)  # fmt: skip
        wall_s, after = time.monotonic() - began, _usages(found)
    if log.rows > plan.rows or log.rows == rows:
        raise Failed(f"{rows} rows when ready, {log.rows} in the end, {plan.rows} were sent")
    return Drained(log.rows - rows, wall_s, before, after), log


def _usages(found: Sequence[Worker]) -> list[Usage]:
    return [usage(worker.process.pid) for worker in found]


def _forget_group(plan: Plan) -> None:
    """Let the next worker start from the beginning: static members that have ended are removed, and
    the group with its offsets is deleted."""
    group = worker_group(plan.load_task().id)
    admin = KafkaAdminClient(bootstrap_servers=plan.bootstrap)

    def forgotten() -> bool:
        try:
            for name in NAMES:
                admin.remove_group_members(group, [MemberToRemove(group_instance_id=name)])
            found = admin.delete_groups([group])
        except KafkaError:
            return False
        return set(found.values()) <= {"OK", "GroupIdNotFoundError"}

    try:
        until(f"the broker lets go of the group {group}", forgotten, pause_s=0.2)
    finally:
        admin.close()
