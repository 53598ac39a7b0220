"""The benchmark's stage: a broker, a folder, topics with backlogs, and contenders run on them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from streams.contract.task import load_task
from streams.contract.topics import TopicSpec, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.bench import machine
from tests.bench.kafka import real_kafka
from tests.bench.meter import Measure
from tests.bench.streams.contenders import worker
from tests.bench.streams.feed.plan import Plan
from tests.bench.streams.feed.teacher import write_teacher

ROOT = Path(__file__).parents[3]
CONTEND_S = 300.0
ONCE_S = 30.0  # of the patience for a quiet machine, before one run


class ContenderFailed(Exception):
    """A contender ended badly; the text is the end of what it wrote."""


@dataclass
class Stage:
    """Where all contenders run, one at a time."""

    folder: Path
    settings: BrokerSettings
    kafka: str  # which one it is
    broker: int | None  # its process
    patience_s: float  # for a quiet machine, in all
    runs: int = 0

    @property
    def bootstrap(self) -> str:
        return self.settings.bootstrap

    def new_folder(self, name: str) -> Path:
        """A folder for one run, which does not exist yet."""
        self.runs += 1
        return self.folder / "runs" / f"{self.runs:02d}-{name}"

    def plan(
        self, task: str, *, devices: int, rounds: int, per_message: int, hop_us: int, **more: object
    ) -> Plan:
        """A backlog of a task, whose teacher is written where it is not there yet."""
        plan = Plan(
            task=task,
            bootstrap=self.bootstrap,
            folder=str(self.folder / load_task(task).name),
            devices=devices,
            rounds=rounds,
            per_message=per_message,
            hop_us=hop_us,
            **more,  # type: ignore[arg-type]
        )
        if not (plan.run_folder / "teacher.twa").exists():
            write_teacher(plan.load_task(), plan.run_folder)
        return plan

    def preload(self, plan: Plan) -> None:
        """Put a backlog on its topic, which is made anew."""
        delete_topics(self.settings, plan)
        specs = topic_specs(plan.load_task().name, plan.partitions)
        if plan.single:
            specs = [TopicSpec(n, 1, "delete", -1) for n in (plan.topic, f"{plan.topic}-out")]
        ensure_topics(self.settings, specs)
        self.run_python("tests.bench.streams.feed.generator", [plan.argument()])

    def contend(
        self,
        module: str,
        plan: Plan,
        *more: str,
        python: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Measure:
        """Run one contender to its end."""
        argv = [plan.argument(), *more]
        module = f"tests.bench.streams.contenders.{module}"
        return Measure.read(self.run_python(module, argv, python=python, environ=environ))

    def contend_in_two(
        self, module: str, plan: Plan, *more: str, environ: Mapping[str, str]
    ) -> Measure:
        """Run two processes of a contender that begin at once, each with half of the partitions."""
        argv = [sys.executable, "-m", f"tests.bench.streams.contenders.{module}", plan.argument()]
        with ExitStack() as stack:
            found = [
                stack.enter_context(_piped([*argv, *more, str(index), "2"], environ))
                for index in range(2)
            ]
            if any(one.stdout.readline() != "ready\n" for one in found):
                raise ContenderFailed(f"{module}: one of two ended before it was ready")
            for one in found:
                one.stdin.write("\n")
                one.stdin.flush()
            return Measure.together(
                [Measure.read(one.communicate(timeout=CONTEND_S)[0]) for one in found]
            )

    def drain(
        self, plan: Plan, workers: int = 1, environ: Mapping[str, str] | None = None
    ) -> worker.Drain:
        """Run the worker, or some, until the store has the backlog."""
        folder = self.new_folder("worker")
        with worker.workers(plan, folder, workers, environ) as found:
            return worker.drain(plan, found, folder / "store")

    def wait_until_quiet(self) -> None:
        """Wait for others to be done with the machine, as long as there is patience left."""
        patience_s = min(self.patience_s, ONCE_S)
        self.patience_s -= machine.wait_until_quiet(self.broker, patience_s)

    def watched(self) -> AbstractContextManager[machine.Load]:
        """How much others use the machine meanwhile."""
        return machine.watched(self.broker)

    def run_python(
        self,
        module: str,
        argv: list[str],
        *,
        python: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Run a module to its end; what it printed."""
        done = subprocess.run(
            [str(python or sys.executable), "-m", module, *argv],
            capture_output=True,
            text=True,
            timeout=CONTEND_S,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
        if done.returncode:
            raise ContenderFailed(f"{module}: {(done.stderr or done.stdout).strip()[-1500:]}")
        return done.stdout


@contextmanager
def _piped(argv: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process whose input and output are pipes; it is gone afterwards."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        argv, **pipes, text=True, cwd=ROOT, env={**os.environ, **environ}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def delete_topics(settings: BrokerSettings, plan: Plan) -> None:
    """Remove the plan's topics, so that one task can have backlogs of several shapes in turn."""
    from kafka import KafkaAdminClient

    names = {spec.name for spec in topic_specs(plan.load_task().name)}
    if plan.single:
        names = {plan.topic, f"{plan.topic}-out"}
    admin = KafkaAdminClient(**settings.client_options())
    try:
        there = sorted(names & set(admin.list_topics()))
        if there:
            admin.delete_topics(there)
        while names & set(admin.list_topics()):
            pass
    finally:
        admin.close()


@contextmanager
def stage(
    folder: Path, *, patience_s: float, environ: Mapping[str, str] = os.environ
) -> Iterator[Stage]:
    """A real Kafka for the time of the benchmark: as TIDEWHEEL_KAFKA or KAFKA_HOME names it."""
    with real_kafka(folder, environ) as kafka:
        yield Stage(folder, kafka.settings, kafka.name, kafka.pid, patience_s)
