"""How nodes behave in one run: who sits out, and what has been sent before.

A node whose updates are refused OFFENCES times gets no work in the next SITS_OUT rounds; then it
counts anew. A `name` or a `duplicate` is no offence: of two nodes under one name it cannot be told
which one lies, and the honest one must not be made to sit out by the other. To be `stale` is none,
and errors are none either.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import ConfigDict

from federation.admission.admission import digest
from streams.contract.documents import Document

OFFENCES = 2
SITS_OUT = 3  # rounds
NO_OFFENCE = frozenset({"name", "duplicate", "stale"})


class QuarantineRecord(Document):
    """A Conduct as a checkpoint keeps it: digests in hexadecimal, counts by node."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    refused: list[int] = []
    received: list[str] = []
    offences: list[tuple[int, int]] = []
    until: list[tuple[int, int]] = []


@dataclass
class Quarantine:
    """By node, not by name: a refused update may lie about its name."""

    refused: set[int] = field(default_factory=set)  # nodes that were, for whatever reason
    received: set[bytes] = field(default_factory=set)  # digests, of all rounds so far
    _offences: Counter[int] = field(default_factory=Counter)
    _until: dict[int, int] = field(default_factory=dict)  # node -> last round that it sits out

    def refuse(self, node: int, reason: str, number: int) -> None:
        """An answer of `node` was refused in round `number`."""
        self.refused.add(node)
        if reason in NO_OFFENCE:
            return
        self._offences[node] += 1
        if self._offences[node] >= OFFENCES:
            del self._offences[node]
            self._until[node] = number + SITS_OUT

    def sits_out_until(self, node: int, number: int) -> int | None:
        """The last round that `node` sits out, when round `number` is one of those."""
        until = self._until.get(node, 0)
        return until if number <= until else None

    def remember(self, sent: Iterable[Mapping[str, np.ndarray]]) -> None:
        """What a round received, admitted or not; after the round, as two devices may agree."""
        self.received.update(digest(weights) for weights in sent)

    def kept(self) -> QuarantineRecord:
        return QuarantineRecord(
            refused=sorted(self.refused),
            received=sorted(found.hex() for found in self.received),
            offences=sorted(self._offences.items()),
            until=sorted(self._until.items()),
        )

    @classmethod
    def from_kept(cls, kept: QuarantineRecord) -> "Quarantine":
        """ValueError where a digest is none."""
        return cls(
            set(kept.refused),
            {bytes.fromhex(text) for text in kept.received},
            Counter(dict(kept.offences)),
            dict(kept.until),
        )
