"""What a commit needs of Kafka, and what one flush takes through its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.contract.events.messages import Drop
from streams.worker.commit.publications import Outgoing
from streams.worker.windows.partition import DeclaredDrop, ToldLabels
from streams.worker.windows.tumbling import Message, Window, WindowSlice


class Broker(Protocol):
    """What a commit needs of Kafka."""

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send, and return when the broker has all; BrokerUnavailable when it is away."""
        ...

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Acknowledge messages, in the order given."""
        ...

    async def commit_offsets(self) -> None: ...


@dataclass
class CommitWork:
    """What one flush takes from the partitions, and what becomes of it."""

    windows: list[Window] = field(default_factory=list)
    drops: list[tuple[int, DeclaredDrop]] = field(default_factory=list)
    labels: list[tuple[int, ToldLabels]] = field(default_factory=list)
    unbelieved: list[tuple[int, WindowSlice]] = field(default_factory=list)
    dead_letters: list[Outgoing] = field(default_factory=list)
    malformed: list[Message] = field(default_factory=list)
    lost: dict[int, list[Drop]] = field(default_factory=dict)  # by partition, of a hole

    def __bool__(self) -> bool:
        taken = self.windows, self.drops, self.labels, self.unbelieved, self.dead_letters, self.lost
        return any(taken)
