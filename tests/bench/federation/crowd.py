"""A fleet of devices in simulated time: the product's rounds, admission and aggregation, and real
training, on a clock that jumps from one event to the next.

What is simulated is how long things take: MESSAGE_S on the way (Flower's SuperNode looks for work
every 3 s and starts a process for it), TRAIN_S to train, five times that on a slow device; and a
device that drops out is silent for a minute. Flower's FedAvg is its arithmetic of all updates that
came before its timeout: its grid waits for every node until then, and looks every 3 s.
"""

import contextlib
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from federation.admission.update import Tensors, Update
from federation.aggregation import strategies
from federation.evaluation.accuracy import HeldOut, score
from federation.registry.registry import Registry
from federation.rounds import settings
from federation.rounds.event_log import EventLog
from federation.rounds.messages import Reply
from federation.rounds.run import FederatedRun
from streams.contract.documents import RoundEvent
from streams.contract.errors import BrokerUnavailable
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import Op, Work
from streams.learning import learning
from streams.runtime.key_files import load_private_key
from tests.bench.federation.real.dropouts import DROP, SHARE, SLOW
from tests.bench.federation.real.processes import reached
from tests.bench.federation.real.stage import SECONDS_AWAY, Stage

DEVICES, SEGMENTS = 200, 48
MESSAGE_S, TRAIN_S, POLL_S = (1.0, 4.5), 2.0, 3.0
TARGET = 0.88
STOCK_ROUNDS = 12
DEADLINE_S = 20.0  # of ours and of Flower's: nothing waits for a processor here


@dataclass
class Crowd:
    """A fleet of `size`, each with `segments` of a person's segments. Implements exchange.Fleet on
    its own clock, seconds; everyone is always online."""

    task: Task
    people: list[dict[str, np.ndarray]]
    size: int = DEVICES
    segments: int = SEGMENTS
    drop: float = DROP
    seed: int = 0
    now: float = 0.0
    trained: int = 0
    _due: list[tuple[float, Reply, Work, Tensors]] = field(default_factory=list)

    def nodes(self) -> list[int]:
        return list(range(self.size))

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        for node in nodes:
            dice = random.Random(f"{self.seed}/{node}/{work.round}/{op}")
            gone = op == "train" and dice.random() < self.drop
            slow = SLOW if node % round(1 / SHARE) == 0 else 1.0
            takes = dice.uniform(*MESSAGE_S) + slow * TRAIN_S
            answer = Reply(node, f"device-{node}", round=work.round, op=op)
            if gone:
                answer, takes = replace(answer, error="the device was away"), SECONDS_AWAY
            if takes <= ttl_s:
                self._due.append((self.now + takes, answer, work, weights))

    def receive(self) -> list[Reply]:
        come = [one for one in self._due if one[0] <= self.now]
        self._due = [one for one in self._due if one[0] > self.now]
        return [self._answered(answer, work, weights) for _, answer, work, weights in come]

    def _answered(self, answer: Reply, work: Work, weights: Tensors) -> Reply:
        """Only now, as it may never be asked for: the training."""
        if answer.error is not None:
            return answer
        if answer.op == "evaluate":
            return replace(answer, error="not evaluated")
        self.trained += 1
        update = self.update(answer.node, work, weights)
        return replace(answer, update=update)

    def update(self, node: int, work: Work, weights: Tensors) -> Update:
        person, dice = (
            self.people[node % len(self.people)],
            np.random.default_rng([self.seed, node]),
        )
        rows = dice.permutation(len(person["y"]))[: self.segments]
        model = learning.load_state(self.task.build_model(), weights)
        x, y = person["x"][rows], person["y"][rows]
        learning.fit(
            model, len(x), learning.segment_loss(self.task, model, x, y), epochs=work.epochs,
            batch_size=work.batch_size, learning_rate=work.learning_rate, seed=work.seed,
        )  # fmt: skip
        trained = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        block = payload.encode_update(trained, weights, work.payload)
        found, name = payload.restore_update(payload.unpack(block), weights), f"device-{node}"
        return Update(name, work.task, work.task_version, work.base, len(x), found)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Reached(Exception):
    """The accuracy that was asked for."""


@dataclass
class Watched:
    """Round, seconds of the crowd's clock, accuracy; stops a run at `target`."""

    crowd: Crowd
    target: float = TARGET
    rounds: list[tuple[int, float, float]] = field(default_factory=list)

    def note(self, number: int, share: float) -> None:
        self.rounds.append((number, self.crowd.now, share))
        if reached(self.rounds, self.target) is not None:
            raise _Reached


def ours(
    stage: Stage,
    folder: Path,
    crowd: Crowd,
    strategy: str,
    rounds: int,
    target: float = TARGET,
) -> Watched:
    watched, key = Watched(crowd, target), load_private_key(folder / "keys" / "signing.pem")
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        journal = _Told(crowd.task.name, "1", Path(runs) / "1" / "rounds.jsonl", _nowhere)
        journal.watched = watched
        training = crowd.task.training
        deadline_s = 60.0 if strategy == "fedbuff" else DEADLINE_S
        chosen = settings.RunSettings(
            "1", rounds, crowd.size // 2, 60.0, deadline_s, training.epochs, training.batch_size,
            training.learning_rate, 0.01, crowd.seed, Path(runs),
        )  # fmt: skip
        registry = Registry(folder / "registry", crowd.task.name, 1, [key.public_key()])
        run = FederatedRun(
            crowd.task, chosen, registry, key, crowd, journal, strategies.make(strategy),
            policy=settings.policy(crowd.task, strategy), clock=lambda: crowd.now,
            sleep=crowd.sleep,
        )  # fmt: skip
        with contextlib.suppress(_Reached):
            run.run()
    return watched


def _nowhere() -> None:
    raise BrokerUnavailable("no broker is needed")


class _Told(EventLog):
    """A journal that looks at what is evaluated, and is read by nobody else."""

    watched: Watched

    def close(self, timeout_s: float = 0.0) -> None:
        pass

    def publish(self, kind, **fields):  # type: ignore[no-untyped-def]
        event: RoundEvent = super().publish(kind, **fields)
        if event.kind == "evaluated" and "held_out_base" not in event.metrics:
            self.watched.note(event.round, event.metrics["held_out"])
        return event


def stock(stage: Stage, folder: Path, crowd: Crowd, timeout_s: float = 3600.0) -> Watched:
    """Flower's FedAvg; 3600 s are its own default."""
    watched, task, training = Watched(crowd), stage.task, stage.task.training
    weights = safetensors.numpy.load((folder / "first.safetensors").read_bytes())
    held = HeldOut.decode(stage.heldout(folder).read_bytes(), task)
    mean = strategies.make("fedavg")
    try:
        for number in range(1, STOCK_ROUNDS + 1):
            work = Work(
                run="1", round=number, task=task.name, task_version=1, base="-",
                epochs=training.epochs, batch_size=training.batch_size,
                learning_rate=training.learning_rate, seed=crowd.seed * 1000 + number,
                time_budget_s=60.0,
            )  # fmt: skip
            ends = crowd.now + timeout_s
            crowd.send("train", crowd.nodes(), work, weights, timeout_s)
            answers: list[Reply] = []
            while len(answers) < crowd.size and crowd.now < ends:
                crowd.sleep(min(POLL_S, ends - crowd.now))
                answers += crowd.receive()
            updates = [a.update for a in answers if a.update is not None]
            weights = mean.aggregate(updates, weights)
            model = learning.load_state(task.build_model(), weights)
            outputs = learning.predict(model, held.segments)
            watched.note(number, score(task, outputs, held.labels).value)
    except _Reached:
        pass
    return watched
