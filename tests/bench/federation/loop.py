"""Rounds without Flower's processes: devices train one after the other; the server's intake and
strategy do what they do in a run."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from federation.admission.update import Update
from federation.aggregation.aggregator import Aggregator
from federation.rounds.event_log import EventLog
from federation.rounds.messages import Reply
from federation.rounds.update_intake import UpdateIntake
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.learning.clipping import update_norm
from tests.bench.federation.trainees import BASE, Tensors

Answering = Callable[[str, Tensors, int], Update]  # device, weights sent out, round


class Tally:
    """A run's journal that only counts: refusals by device and reason."""

    def __init__(self) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()
        self.failed_rounds = 0

    def publish(self, kind: str, device: str = "", reason: str = "", **_fields: Any) -> None:
        if kind == "refused":
            self.refused[device, reason.partition(":")[0]] += 1


def round_seed(seed: int, number: int) -> int:
    """As federation.rounds.run has it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def rounds(
    task: Task,
    names: Sequence[str],
    weights: Tensors,
    count: int,
    aggregator: Aggregator,
    answer: Answering,
    tally: Tally,
) -> Iterator[Tensors]:
    """The weights after each round; those before where too few updates were admitted."""
    intake = UpdateIntake(task, cast(EventLog, tally), clip=aggregator.clip)
    for number in range(1, count + 1):
        about = {"round": number, "rounds": count, "base": BASE}
        sent = payload.round_weights(weights, task.training.payload)
        asked = intake.begin_round(range(len(names)), sent, about)
        answers = [
            Reply(node, names[node], answer(names[node], sent, number), round=number)
            for node in asked
        ]
        updates = intake.admit(answers, {}, about)
        if len(updates) >= aggregator.least:
            intake.norms += [update_norm(update.weights, sent) for update in updates]
            weights = aggregator.aggregate(updates, weights)
        else:
            tally.failed_rounds += 1
        yield weights
