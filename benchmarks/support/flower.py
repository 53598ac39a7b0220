"""Runs on real processes."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.frame import Bench
from benchmarks.support.federation_devices import Planned
from benchmarks.support.in_process import read_people
from benchmarks.support.processes import running, until
from compose.launcher import flower_processes
from edge_client.samples.splits import HELD_OUT, TRAIN
from federation.bootstrap.initial_model import prepare
from federation.evaluation.accuracy import HeldOut
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS
from streams.contract.documents import RoundEvent
from streams.contract.invitations import SignedInvitation
from streams.contract.task import Task, load_task
from streams.contract.topics import INVITATIONS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from streams.runtime.disk import cache_folder
from streams.runtime.key_files import create_key
from tests.rig.processes.flower import FlowerStack

TASK = "streams.tasks.har:task"
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Ended:
    """A run's rounds: when each ended, seconds since 1970, and the accuracy then; round 0 is when
    the run invited its devices."""

    rounds: list[tuple[int, float, float]]

    @property
    def first_s(self) -> float:
        """From the begin of the run to the end of its first round."""
        return self.rounds[1][1] - self.rounds[0][1]

    @property
    def each_s(self) -> float:
        """The mean of the rounds after the first."""
        (first, began, _), (last, ended, _) = self.rounds[1], self.rounds[-1]
        return (ended - began) / max(last - first, 1)


@dataclass(frozen=True)
class Arena:
    """Where runs take place: a state folder with a registry that serves the first model, people's
    segments as .npz, and the held-out segments of the fleet's people by which runs are judged."""

    bench: Bench
    folder: Path
    count: int  # devices

    @property
    def task(self) -> Task:
        return load_task(TASK)

    @classmethod
    def make(cls, bench: Bench, name: str, count: int) -> "Arena":
        folder = bench.place(name)
        arena = cls(bench, folder, count)
        key = create_key(folder / "keys" / "signing.pem")
        task = arena.task
        registry = Registry(folder / "registry", task.name, task.version, [key.public_key()])
        prepare(TASK, task, registry, key, cache_folder())
        serving = registry.serving()
        assert serving is not None
        (folder / "first.safetensors").write_bytes(serving.files[WEIGHTS])
        arena._write_people()
        people = [np.load(arena.data / f"{name}.npz") for name in task.device_names("fleet")]
        held = (np.concatenate([p[key] for p in people]) for key in ("held_x", "held_y"))
        registry.set_heldout(HeldOut(*held).encode())
        return arena

    @property
    def data(self) -> Path:
        return self.bench.folder / "people"

    def _write_people(self) -> None:
        """Labelled segments, split as a device splits them: x, y to train; held_x, held_y not."""
        if self.data.exists():
            return
        self.data.mkdir()
        for person in read_people(self.task, "fleet"):
            train, held = person.split == TRAIN, person.split == HELD_OUT
            np.savez(
                self.data / f"{person.name}.npz",
                x=person.segments[train], y=person.labels[train],
                held_x=person.segments[held], held_y=person.labels[held],
            )  # fmt: skip

    @property
    def names(self) -> list[str]:
        return self.task.device_names("fleet")[: self.count]

    def run(self, rounds: int) -> Ended:
        """Run until the run ends."""
        folder, kafka = self.folder, self.bench.kafka
        sockets = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
        plan = [
            Planned(
                name, str(self.data / f"{name}.npz"), str(folder / "devices" / name),
                str(sockets / f"{name}.sock"), str(folder / "keys" / "signing.pub"),
            )
            for name in self.names
        ]  # fmt: skip
        path = folder / "plan.json"
        path.write_text(json.dumps([asdict(one) for one in plan]))
        ensure_topics(kafka, topic_specs(self.task.id))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap}
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            address = stack.enter_context(FlowerStack(folder, {}, env)).address
            devices = [sys.executable, "-m", "benchmarks.support.federation_devices", TASK]
            stack.enter_context(running([*devices, str(path)], folder / "devices.log", env))
            until("the devices", path.with_suffix(".ready").exists, 120)
            submission = flower_processes.submission(folder, address, {
                "task": TASK, "state": str(folder), "rounds": rounds, "superlink": address,
                "minimum-nodes": self.count, "epochs": self.task.training.epochs,
                "kafka": kafka.bootstrap,
            })  # fmt: skip
            run = submission.start({}, folder)
            journal = folder / "runs" / run / "rounds.jsonl"

            def ended() -> Ended | None:
                lines = journal.read_bytes().splitlines() if journal.exists() else []
                events = [RoundEvent.decode(line) for line in lines]
                return _of_events(events)

            until(f"our run ({folder})", lambda: ended() is not None, TIMEOUT_S, pause_s=0.2)
            found = ended()
            with closing(Reader(kafka, [topic_name(self.task.id, INVITATIONS)])) as reader:
                invited = [SignedInvitation.decode(one.value) for one in reader.read_to_end()]
        assert found is not None
        said = [json.loads(one.text) for one in invited]
        began = min(one["issued_us"] for one in said if one["run"] == run) / 1e6
        return Ended([(0, began, 0.0), *found.rounds[1:]])


def _of_events(events: Sequence[RoundEvent]) -> Ended | None:
    """Return a run that has ended."""
    rounds = [
        (e.round, e.time_us / 1e6, e.metrics["held_out"])
        for e in events
        if e.kind == "evaluated" and "held_out_base" not in e.metrics
    ]
    if not any(e.kind == "finished" for e in events):
        return None
    began = next(e.time_us for e in events if e.kind == "started") / 1e6
    return Ended([(0, began, 0.0), *rounds])
