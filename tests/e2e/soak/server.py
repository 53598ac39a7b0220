"""The server's side of a soak: registry, workers and controller as real processes, topics whose
messages are deleted by the day, and what all of this takes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from compose.launcher.state_dir import StateDir
from compose.reports.follower import read_lag
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS, Manifest, pack
from streams.contract.decisions import Ref
from streams.contract.task import Task
from streams.contract.topics import EVENTS, SCORES, WINDOWS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.learning.learning import build_teacher, to_safetensors
from streams.runtime.trust import create_key
from tests.rig.processes.running import ROOT, start

PARTITIONS = 4
WORKERS = ("w0", "w1")
END_S = 40.0
FENCED = "belongs to another worker"


@dataclass
class Server:
    """Processes by name: w0, w1, controller. fenced: workers started again because another
    one had committed."""

    broker: BrokerSettings
    folder: Path
    reference: str
    task: Task
    keep_days: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    fenced: int = 0
    _ends: deque[dict[TopicPartition, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.layout = StateDir(self.folder / "state")
        ensure_topics(self.broker, topic_specs(self.task.id, PARTITIONS))
        self.layout.signing_key.parent.mkdir(parents=True, exist_ok=True)
        self.key = create_key(self.layout.signing_key)
        self.registry = Registry(
            self.layout.registry, self.task.name, self.task.version, [self.key.public_key()]
        )
        self.registry.serve(self.add_version(1, None), self.key, "the first model")
        weights = to_safetensors(build_teacher(self.task).state_dict())
        (self.folder / "teacher.safetensors").write_bytes(weights)
        manifest = self._manifest(1, kind="teacher")
        teacher = self.layout.registry / "teacher.twa"
        teacher.write_bytes(pack(manifest, {WEIGHTS: weights}, self.key))

    def _manifest(self, number: int, **fields: object) -> Manifest:
        about = {"task": self.task.name, "task_version": self.task.version, "number": number}
        return Manifest.of_fields(about | {"created_us": 1, "key": "", "files": []} | fields)

    def add_version(self, number: int, base: str | None) -> str:
        data = pack(self._manifest(number, base=base), {WEIGHTS: os.urandom(2000)}, self.key)
        return self.registry.add(data).model

    def offer(self, number: int) -> str:
        """Make the next version a candidate, as after the gate."""
        desired = self.registry.desired()
        assert desired.stable is not None
        model = self.add_version(number, desired.stable.model)
        ref = Ref.of(self.registry.load(model))
        after = desired.replace(candidate=ref)
        last = self.registry.last()
        assert last is not None
        self.registry.decide(self.key, "candidate", after, last, model=model, reason="a soak")
        return model

    def offer_teacher(self) -> None:
        """By the command that a person would use."""
        file = str(self.folder / "teacher.safetensors")
        self.command("models", "import", self.reference, file, "--teacher")

    def command(self, *words: str) -> tuple[float, str]:
        """Run a command on this fleet; return its seconds and its output."""
        about = ["--state", str(self.layout.state)]
        if words[0] != "query":
            about += ["--kafka", self.broker.bootstrap]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "compose.cli.main", *words, *about],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{words[0]} failed: {done.stderr[-500:]}")
        return time.monotonic() - began, done.stdout

    def start(self, name: str) -> None:
        words = ["controller", "--stages", "0.25,1", "--runs-per-day", "0"]
        if name in WORKERS:
            words = ["worker", "--instance", name]
            words += ["--keep-days", str(self.keep_days)]
        about = [self.reference, "--state", str(self.layout.state)]
        about += ["--kafka", self.broker.bootstrap]
        argv = [sys.executable, "-m", "compose.cli.main", words[0], *about, *words[1:]]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes[name] = start(argv, self.folder / f"{name}.log", env, session=False)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_S)
            raise

    def check_alive(self) -> None:
        """Start a worker again that has ended because another one committed after a session that
        was lost, as a supervisor does; raise RuntimeError if a process has ended otherwise."""
        for name, process in [*self.processes.items()]:
            if process.poll() is None:
                continue
            tail = (self.folder / f"{name}.log").read_text(errors="replace")[-1500:]
            if process.returncode != 1 or FENCED not in tail:
                raise RuntimeError(f"{name} ended with {process.returncode}: {tail}")
            self.fenced += 1
            self.start(name)

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of each process."""
        return {name: resident_mb(process.pid) for name, process in self.processes.items()}

    def store_size(self) -> tuple[int, float]:
        """Files of the store, and megabytes."""
        sizes = []
        for path in self.layout.store.rglob("*"):
            try:
                sizes += [path.stat().st_size] if path.is_file() else []
            except FileNotFoundError:  # upkeep
                continue
        return len(sizes), sum(sizes) / 1e6

    def pass_retention(self, days: int) -> None:
        """Let messages go that were on the topics `days` calls ago, read or not."""
        topics = [topic_name(self.task.id, name) for name in (EVENTS, SCORES, WINDOWS)]
        with closing(Reader(self.broker, topics, from_beginning=False)) as reader:
            bounds = reader.bounds()
        self._ends.append({TopicPartition(*at): end for at, (_, end) in bounds.items()})
        if len(self._ends) <= days:
            return
        admin = KafkaAdminClient(**self.broker.client_options())
        with closing(admin):
            admin.delete_records({at: end for at, end in self._ends.popleft().items() if end})

    def lag(self) -> int:
        """Messages behind, as `status` tells."""
        _, text = self.command("status", self.reference, "--json")
        return sum(part["messages"] for part in json.loads(text)["lag"]["partitions"])

    def behind(self) -> int:
        """Messages that no worker has stored."""
        return read_lag(self.broker, self.task).messages

    def end(self) -> None:
        for name in list(self.processes):
            self.stop(name)


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
