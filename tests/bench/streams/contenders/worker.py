"""The worker as a user starts it: `tidewheel worker`, in processes of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from tests.bench.meter import Sample, sample
from tests.bench.streams.contenders.sealed import Log
from tests.bench.streams.feed.plan import Plan

LOOK_S = 0.02
READY_S, STOP_S = 60.0, 30.0
NAMES = tuple(f"bench-{number}" for number in range(4))
ROOT = Path(__file__).parents[4]


class WorkerEnded(Exception):
    """A worker ended or did not get on; the text has the end of its log."""


@dataclass
class Worker:
    """One worker process and its log."""

    instance: str
    process: subprocess.Popen[bytes]
    log: Path
    _read: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def partitions(self) -> int:
        """How many partitions it says that it owns, 0 as long as it is not ready."""
        found = 0
        for line in self.log.read_text(errors="replace").splitlines():
            if f"worker {self.instance}: ready, partitions" in line:
                found = len([p for p in line.rpartition("[")[2].rstrip("]").split(",") if p])
        return found

    def check(self) -> None:
        if self.process.poll() is not None:
            end = self.log.read_text(errors="replace")[-2000:]
            raise WorkerEnded(f"worker {self.instance} ended with {self.process.returncode}: {end}")


def argv(plan: Plan, instance: str, store: Path) -> list[str]:
    """The command line of one worker."""
    program = Path(sys.executable).parent / "tidewheel"
    folder = plan.run_folder
    options = {
        "--kafka": plan.bootstrap,
        "--instance": instance,
        "--store": store,
        "--teacher": folder / "teacher.twa",
        "--trust": folder / "key.pub",
        "--state": store.parent,
        "--partitions": plan.partitions,
    }
    pairs = [text for name, value in options.items() for text in (name, str(value))]
    return [str(program), "worker", plan.task, *pairs]


@contextmanager
def workers(
    plan: Plan,
    folder: Path,
    count: int,
    environ: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[list[Worker]]:
    """Start `count` workers on an empty store, `<folder>/store`, from the topic's beginning; with
    further options of the command."""
    forget_group(plan)
    folder.mkdir(parents=True)
    found: list[Worker] = []
    try:
        for name in NAMES[:count]:
            log = folder / f"{name}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*argv(plan, name, folder / "store"), *options],
                    stdout=output,
                    stderr=output,
                    cwd=ROOT,
                    env={**os.environ, **(environ or {})},
                )
            found.append(Worker(name, process, log))
        yield found
    finally:
        for worker in found:
            worker.process.terminate()
        for worker in found:
            try:
                worker.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def wait_until_ready(plan: Plan, found: list[Worker], timeout_s: float = READY_S) -> None:
    """Wait until the workers own all partitions, each some of them."""
    deadline = time.monotonic() + timeout_s
    while True:
        owned = [worker.partitions() for worker in found]
        if all(owned) and sum(owned) == plan.partitions:
            return
        for worker in found:
            worker.check()
        if time.monotonic() > deadline:
            raise WorkerEnded(f"the workers have {owned} partitions after {timeout_s:.0f} s")
        time.sleep(LOOK_S)


@dataclass(frozen=True)
class Drain:
    """One or more workers at work on a backlog, from ready to the last row in the store."""

    rows: int
    wall_s: float
    before: list[Sample]
    after: list[Sample]

    @property
    def cpu_s(self) -> float:
        pairs = zip(self.before, self.after, strict=True)
        return sum(after.cpu_s - before.cpu_s for before, after in pairs)

    @property
    def peak_bytes(self) -> int:
        return sum(one.peak_bytes for one in self.after)

    @property
    def resident_bytes(self) -> int:
        return sum(one.resident_bytes for one in self.after)


def drain(plan: Plan, found: list[Worker], store: Path, timeout_s: float = 240.0) -> Drain:
    """Wait until the store has all rows of closed windows; what was in it at the start (more than
    one worker: one of them begins first) does not count."""
    wait_until_ready(plan, found)
    log = Log(store / "scores")
    began, before, rows = time.monotonic(), [sample(w.pid) for w in found], log.advance()
    while log.advance() < plan.closed_rows:
        for worker in found:
            worker.check()
        if time.monotonic() - began > timeout_s:
            raise WorkerEnded(f"{log.rows} of {plan.closed_rows} rows in {timeout_s:.0f} s")
        time.sleep(LOOK_S)
    wall_s, after = time.monotonic() - began, [sample(w.pid) for w in found]
    if log.rows > plan.rows:
        raise WorkerEnded(f"{log.rows} rows in the store, {plan.rows} were sent")
    return Drain(log.rows - rows, wall_s, before, after)


def forget_group(plan: Plan) -> None:
    """Let the next worker start from the beginning: members that ended without leaving, as static
    members do, are removed, and the group with its offsets is deleted."""
    group = f"tidewheel-{plan.load_task().name}-worker"
    admin = KafkaAdminClient(bootstrap_servers=plan.bootstrap)
    deadline = time.monotonic() + READY_S
    try:
        while not _forgotten(admin, group):
            if time.monotonic() > deadline:
                raise WorkerEnded(f"the broker does not let go of the group {group}")
            time.sleep(0.2)
    finally:
        admin.close()


def _forgotten(admin: KafkaAdminClient, group: str) -> bool:
    """Whether the group is gone; False while it has members, or the broker makes its topic."""
    try:
        for name in NAMES:
            admin.remove_group_members(group, [MemberToRemove(group_instance_id=name)])
        found = admin.delete_groups([group])
    except KafkaError:
        return False
    return set(found.values()) <= {"OK", "GroupIdNotFoundError"}
