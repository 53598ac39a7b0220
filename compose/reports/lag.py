"""How far the scoring workers are behind the devices, from Kafka's offsets.

The lag counts messages of `events`, not events: those from the committed offset of the workers'
group to the partition's end. A worker commits a message once all its events are stored, so messages
of open windows count too: the lag of a running fleet is never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streams.contract.topics import EVENTS, topic_name
from streams.kafka.admin import GroupPosition, group_positions
from streams.kafka.settings import BrokerSettings


@dataclass(frozen=True)
class PartitionLag:
    """One partition of `events`; `committed` is None if no worker has committed."""

    partition: int
    end: int
    committed: int | None
    messages: int


def worker_group(task: str) -> str:
    """Return the group of a task's workers, the name of their Faust app."""
    return f"tidewheel-{task}-worker"


def read_lag(settings: BrokerSettings, task: str, timeout_s: float = 3.0) -> list[PartitionLag]:
    """Return the lag of each partition; raise BrokerUnavailable without a broker."""
    events = topic_name(task, EVENTS)
    return [lag_of(p) for p in group_positions(settings, worker_group(task), events, timeout_s)]


def lag_of(position: GroupPosition) -> PartitionLag:
    """Return a partition's lag. Messages deleted by retention do not count; without a commit a
    worker starts at the beginning."""
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
    """Return the lag in total and by partition, for a person."""
    each = ", ".join(f"{lag.partition}: {lag.messages}" for lag in lags)
    line = f"workers are {total(lags)} messages behind (by partition {each})"
    idle = all(lag.committed is None for lag in lags)
    return f"{line}; no worker has committed yet" if idle else line
