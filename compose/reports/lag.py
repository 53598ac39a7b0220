"""How far the scoring workers are behind the devices, as Kafka's offsets tell it.

Counted are messages of `events`, not events: those after the offset that the workers' group has
committed, up to the partition's end. A worker commits a message once all of its events are stored,
so the messages of windows that are still open count as well: a fleet that runs is never at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streams.contract.topics import EVENTS, topic_name
from streams.kafka.admin import GroupPosition, group_positions
from streams.kafka.settings import BrokerSettings


@dataclass(frozen=True)
class PartitionLag:
    """One partition of `events`; `committed` is None where no worker has committed anything."""

    partition: int
    end: int
    committed: int | None
    messages: int


def worker_group(task: str) -> str:
    """The group of a task's workers, which is the name of their Faust app."""
    return f"tidewheel-{task}-worker"


def read_lag(settings: BrokerSettings, task: str, timeout_s: float = 3.0) -> list[PartitionLag]:
    """The lag of each partition; BrokerUnavailable when no broker answers."""
    events = topic_name(task, EVENTS)
    return [lag_of(p) for p in group_positions(settings, worker_group(task), events, timeout_s)]


def lag_of(position: GroupPosition) -> PartitionLag:
    """What retention has deleted is no lag; without a commit a worker starts at the beginning."""
    done = max(position.begin, position.committed or 0)
    behind = max(0, position.end - done)
    return PartitionLag(position.partition, position.end, position.committed, behind)


def total(lags: Sequence[PartitionLag]) -> int:
    return sum(lag.messages for lag in lags)


def to_json(lags: Sequence[PartitionLag]) -> dict[str, Any]:
    partitions = [
        {"partition": x.partition, "end": x.end, "committed": x.committed, "messages": x.messages}
        for x in lags
    ]
    return {"messages": total(lags), "partitions": partitions}


def lag_line(lags: Sequence[PartitionLag]) -> str:
    """For a person: in total, then partition by partition."""
    each = ", ".join(f"{lag.partition}: {lag.messages}" for lag in lags)
    line = f"workers are {total(lags)} messages behind (by partition {each})"
    idle = all(lag.committed is None for lag in lags)
    return f"{line}; none has committed anything yet" if idle else line
