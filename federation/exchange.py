"""What the server and the devices exchange in a round, and how long the server waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from federation.admission import Refusal, Update
from streams.contract.payload import Payload

Op = Literal["train", "evaluate"]
Tensors = dict[str, np.ndarray]

QUORUM = 1 / 2
PATIENCE = 3.0
LEAST_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Work:
    """What every device is told with the weights; the fields of a device's WorkRequest."""

    run: str
    round: int
    task: str
    task_version: int
    base: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    time_budget_s: float
    payload: Payload = "float32"


@dataclass(frozen=True)
class Answer:
    """One node's answer to the work of `round`: an update, or a refusal of what could not be read,
    or an error."""

    node: int
    device: str | None = None
    update: Update | None = None
    refusal: Refusal | None = None
    error: str | None = None
    round: int = 0
    op: Op = "train"


class Fleet(Protocol):
    """The devices of one run, to send to and to hear from; neither call waits."""

    def nodes(self) -> list[int]:
        """Those online now."""
        ...

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        """Send to all `nodes`; what a node has not answered in `ttl_s` seconds it need not do."""
        ...

    def receive(self) -> list[Answer]:
        """The answers that have come since the last call, to whatever round's work."""
        ...


def cutoff_s(replied_s: Sequence[float], expected: int, deadline_s: float) -> float:
    """When to stop waiting, in seconds since the messages were sent.

    Once half have replied the rest get three times as long as those took, at most until the
    deadline: a node that died stays listed for a minute and would cost each round its whole
    deadline. `replied_s` are the times of the replies so far, in order.
    """
    quorum = max(1, round(QUORUM * expected))
    if len(replied_s) < quorum:
        return deadline_s
    return min(deadline_s, max(LEAST_PATIENCE_S, PATIENCE * replied_s[quorum - 1]))
