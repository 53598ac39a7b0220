"""Runs on real processes: the product's and a stock Flower app's, with the same devices, data and
training."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.frame import Bench
from benchmarks.support.federation_devices import Planned
from benchmarks.support.fleets import recordings, together
from benchmarks.support.processes import ROOT, Failed, running, until
from benchmarks.support.server import TASK, Server
from compose.launcher import flower_processes
from compose.launcher.broker import free_ports
from edge_client.samples.table import HELD_OUT, TRAIN
from federation.controller.flwr_cli import ConfigValue, Flwr, Submission
from federation.evaluation.accuracy import HeldOut
from federation.registry.registry import HELD_OUT as HELD_OUT_FILE
from streams.contract.artifact import WEIGHTS
from streams.contract.documents import RoundEvent
from streams.contract.invitations import SignedInvitation
from streams.contract.task import Task, load_task
from streams.contract.topics import INVITATIONS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader
from streams.runtime.files import write_atomic
from tests.rig.processes.flower import FlowerStack

STOCK = Path(__file__).parents[1] / "contenders" / "stock"
TIMEOUT_S = 900.0
LOOK_S = 20.0  # between two looks whether a run has failed; a look is a process
AGAIN = "-again"  # a second device with a person's data


@dataclass(frozen=True)
class Ended:
    """A run's rounds: when each ended, seconds since 1970, and the accuracy then; round 0 is when
    the run began, of ours when it invited its devices."""

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

    def seconds_to(self, accuracy: float) -> float | None:
        found = reached(self.rounds, accuracy)
        return None if found is None else found - self.rounds[0][1]


def reached(rounds: Sequence[tuple[int, float, float]], accuracy: float) -> float | None:
    """Return when a model had been so accurate twice in a row: once may be luck."""
    for (_, _, before), (_, at, share) in pairwise(rounds):
        if min(before, share) >= accuracy:
            return at
    return None


@dataclass(frozen=True)
class Arena:
    """Where runs take place: a state folder with a registry that serves the first model, people's
    segments as .npz, and the held-out segments of the fleet's people by which runs are judged."""

    bench: Bench
    folder: Path
    count: int  # devices
    drop: float = 0.0
    reference: str = TASK

    @property
    def task(self) -> Task:
        return load_task(self.reference)

    @classmethod
    def make(
        cls, bench: Bench, name: str, count: int, drop: float = 0.0, reference: str = TASK
    ) -> "Arena":
        folder = bench.place(name)
        arena = cls(bench, folder, count, drop, reference)
        server = Server(folder, reference)
        (folder / "first.safetensors").write_bytes(server.serving.files[WEIGHTS])
        arena._write_people()
        held = together(p[p.split == HELD_OUT] for p in recordings(reference, "fleet"))
        server.registry.store.write(HELD_OUT_FILE, HeldOut(held.x, held.y).encode())
        return arena

    @property
    def data(self) -> Path:
        return self.bench.folder / "people"

    @property
    def heldout(self) -> Path:
        return self.folder / "registry" / HELD_OUT_FILE

    def _write_people(self) -> None:
        """Labelled segments, split as a device splits them: x, y to train; held_x, held_y not."""
        if self.data.exists():
            return
        self.data.mkdir()
        for person in recordings(self.reference, "fleet"):
            train, held = person[person.split == TRAIN], person[person.split == HELD_OUT]
            np.savez(
                self.data / f"{person.device}.npz",
                x=train.x, y=train.y, held_x=held.x, held_y=held.y,
            )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """The fleet's people, and where these are too few some of them again."""
        people = self.task.device_names("fleet")
        again = [f"{name}{AGAIN}" for name in people]
        return [*people, *again][: self.count]

    def _data_of(self, name: str) -> str:
        return str(self.data / f"{name.removesuffix(AGAIN)}.npz")

    def ours(self, rounds: int, config: dict[str, ConfigValue], target: float = 2.0) -> Ended:
        """Run until the run ends, or its model has been so accurate."""
        folder, kafka = self.folder, self.bench.kafka
        sockets = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
        plan = [
            Planned(
                name, self._data_of(name), str(folder / "devices" / name),
                str(sockets / f"{name}.sock"), str(folder / "keys" / "signing.pub"), self.drop,
            )
            for name in self.names
        ]  # fmt: skip
        path = folder / "plan.json"
        path.write_text(json.dumps([asdict(one) for one in plan]))
        ensure_topics(kafka, topic_specs(self.task.id))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap, "PYTHONPATH": str(ROOT)}
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            address = stack.enter_context(FlowerStack(folder, {}, env)).address
            devices = [
                sys.executable,
                "-m",
                "benchmarks.support.federation_devices",
                self.reference,
            ]
            stack.enter_context(running([*devices, str(path)], folder / "devices.log", env))
            until("the devices", path.with_suffix(".ready").exists, 120)
            submission = flower_processes.submission(folder, address, {
                "task": self.reference, "state": str(folder), "rounds": rounds,
                "superlink": address, "minimum-nodes": self.count,
                "epochs": self.task.training.epochs,
                "kafka": kafka.bootstrap, **config,
            })  # fmt: skip
            run = submission.start({}, folder)
            journal = folder / "runs" / run / "rounds.jsonl"

            def ended() -> Ended | None:
                lines = journal.read_bytes().splitlines() if journal.exists() else []
                events = [RoundEvent.decode(line) for line in lines]
                return _of_events(events, target)

            looked = began_at = time.monotonic()
            while (found := ended()) is None:
                time.sleep(0.2)
                if time.monotonic() - looked < LOOK_S:
                    continue
                looked = time.monotonic()
                status = submission.runs().get(run, "unknown")
                over = status.startswith("finished:") or looked - began_at > TIMEOUT_S
                if over and ended() is None:
                    raise Failed(f"our run is {status}: see {folder} and `flwr log {run}`")
            with closing(Reader(kafka, [topic_name(self.task.id, INVITATIONS)])) as reader:
                invited = [SignedInvitation.decode(one.value) for one in reader.read_to_end()]
        said = [json.loads(one.text) for one in invited]
        began = min(one["issued_us"] for one in said if one["run"] == run) / 1e6
        return Ended([(0, began, 0.0), *found.rounds[1:]])

    def stock(self, rounds: int, config: dict[str, ConfigValue], target: float = 2.0) -> Ended:
        """As Flower's documentation starts its processes, but for the ports."""
        folder, times = self.folder, self.folder / "times.jsonl"
        port, *ports = free_ports(1 + self.count)
        with ExitStack() as stack:
            argv = [flower_processes.program("flower-superlink"), "--insecure"]
            argv += ["--host", "127.0.0.1", "--port", str(port)]
            env = _stock_env(folder, "home")
            stack.enter_context(running(argv, folder / "superlink.log", env))
            until(
                "the SuperLink",
                lambda: flower_processes.is_ready(f"{flower_processes.HOST}:{port}"),
            )
            for own, name in zip(ports, self.names, strict=True):
                argv = [flower_processes.program("flower-supernode"), "--insecure"]
                argv += ["--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1"]
                about = f'device="{name}" data="{self._data_of(name)}" drop={self.drop:.2f}'
                argv += ["--port", str(own), "--node-config", about]
                log = folder / f"{name}.log"
                stack.enter_context(running(argv, log, _stock_env(folder, name)))
            shutil.copytree(STOCK, folder / "app")
            text = '[superlink]\ndefault = "bench"\n\n[superlink.bench]\ninsecure = true\n'
            text += f'address = "127.0.0.1:{port}"\n'
            write_atomic(folder / "homes" / "home" / "config.toml", text.encode())
            flwr = Flwr(flower_processes.program("flwr"), "bench", env)
            Submission(flwr, folder / "app").start({
                "task": self.reference, "weights": str(folder / "first.safetensors"),
                "rounds": rounds, "heldout": str(self.heldout), "nodes": self.count,
                "times": str(times),
                "epochs": self.task.training.epochs, **config,
            }, folder)  # fmt: skip

            def done() -> list[tuple[int, float, float]]:
                lines = times.read_text().splitlines() if times.exists() else []
                found = [json.loads(line) for line in lines]
                return [(one["round"], one["at"], one["held_out"]) for one in found]

            def over() -> bool:
                found = done()
                return bool(found and found[-1][0] == rounds) or bool(reached(found, target))

            until(f"the stock run ({folder})", over, TIMEOUT_S, pause_s=0.2)
            return Ended(done())


def _of_events(events: Sequence[RoundEvent], target: float) -> Ended | None:
    """Return a run that has ended or come to its target."""
    rounds = [
        (e.round, e.time_us / 1e6, e.metrics["held_out"])
        for e in events
        if e.kind == "evaluated" and "held_out_base" not in e.metrics
    ]
    if not (any(e.kind == "finished" for e in events) or reached(rounds, target)):
        return None
    began = next(e.time_us for e in events if e.kind == "started") / 1e6
    return Ended([(0, began, 0.0), *rounds])


def _stock_env(folder: Path, home: str) -> dict[str, str]:
    """Of Flower's settings only those that keep it off the network, and one thread as ours has."""
    kept = flower_processes.environment(folder / "homes" / home)
    del kept["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]
    return {**kept, "PYTHONPATH": str(ROOT)}
