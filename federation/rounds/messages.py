"""The fleet as a transport: sending work, receiving replies, and when to stop waiting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from federation.admission import Refusal, Tensors, Update
from streams.contract.work import Op, Work

QUORUM = 1 / 2
PATIENCE = 3.0
LEAST_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Reply:
    """One node's reply to the work of `round`: an update, a refusal if it was unreadable, or an
    error."""

    node: int
    device: str | None = None
    update: Update | None = None
    refusal: Refusal | None = None
    error: str | None = None
    round: int = 0
    op: Op = "train"


class Fleet(Protocol):
    """The devices of one run; neither `send` nor `receive` waits."""

    def nodes(self) -> list[int]:
        """Return the nodes online now."""
        ...

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        """Send work to all `nodes`; it expires after `ttl_s` seconds."""
        ...

    def receive(self) -> list[Reply]:
        """Return the replies since the last call, to any round's work."""
        ...


def cutoff_s(replied_s: Sequence[float], expected: int, deadline_s: float) -> float:
    """Return when to stop waiting, in seconds since the messages were sent.

    Once half have replied, the rest get three times as long as those took, at most until the
    deadline: a dead node stays listed for a minute and would cost each round its whole deadline.
    `replied_s` are the times of the replies so far, in order.
    """
    quorum = max(1, round(QUORUM * expected))
    if len(replied_s) < quorum:
        return deadline_s
    return min(deadline_s, max(LEAST_PATIENCE_S, PATIENCE * replied_s[quorum - 1]))
