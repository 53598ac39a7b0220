"""Quarantine of nodes in one run, and the digests of all received updates.

A node with STRIKES refused updates gets no work in the next QUARANTINE_ROUNDS rounds; then its
count starts again. The reasons `name` and `duplicate` are no strikes: of two nodes with the same
name the server cannot tell which one lies, and the honest one must not be excluded by the other.
`stale` and errors are no strikes either.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import ConfigDict

from federation.admission.admission import digest
from streams.contract.documents import Document

STRIKES = 2
QUARANTINE_ROUNDS = 3  # rounds
NO_STRIKE = frozenset({"name", "duplicate", "stale"})


class QuarantineRecord(Document):
    """A Quarantine in a checkpoint: digests in hexadecimal, counts by node."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    refused: list[int] = []
    received: list[str] = []
    offences: list[tuple[int, int]] = []
    until: list[tuple[int, int]] = []


@dataclass
class Quarantine:
    """The state by node, not by device name, because a refused update may lie about its name."""

    refused: set[int] = field(default_factory=set)  # nodes with a refusal, for any reason
    received: set[bytes] = field(default_factory=set)  # digests of all rounds so far
    _strikes: Counter[int] = field(default_factory=Counter)
    _until: dict[int, int] = field(default_factory=dict)  # node -> last round of its quarantine

    def refuse(self, node: int, reason: str, number: int) -> None:
        """Record that an update of `node` was refused in round `number`."""
        self.refused.add(node)
        if reason in NO_STRIKE:
            return
        self._strikes[node] += 1
        if self._strikes[node] >= STRIKES:
            del self._strikes[node]
            self._until[node] = number + QUARANTINE_ROUNDS

    def quarantined_until(self, node: int, number: int) -> int | None:
        """Return the last round of the quarantine if round `number` is part of one."""
        until = self._until.get(node, 0)
        return until if number <= until else None

    def remember(self, sent: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Record the updates of a round, admitted or not. Call it after the round: two devices may
        agree."""
        self.received.update(digest(weights) for weights in sent)

    def record(self) -> QuarantineRecord:
        return QuarantineRecord(
            refused=sorted(self.refused),
            received=sorted(found.hex() for found in self.received),
            offences=sorted(self._strikes.items()),
            until=sorted(self._until.items()),
        )

    @classmethod
    def from_record(cls, record: QuarantineRecord) -> "Quarantine":
        """Return the Quarantine of a record; raise ValueError if a digest is invalid."""
        return cls(
            set(record.refused),
            {bytes.fromhex(text) for text in record.received},
            Counter(dict(record.offences)),
            dict(record.until),
        )
