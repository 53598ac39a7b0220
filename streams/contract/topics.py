"""The topics: names, partitions, retention and cleanup policy.

A topic's full name is `<task>.<name>` (`har.events`), so that several tasks share one cluster
and a record's shape is fixed by its topic.
"""

from dataclasses import dataclass

EVENTS = "events"
SCORES = "scores"
WINDOWS = "windows"
RELEASES = "releases"
ARTIFACTS = "artifacts"
FLEET = "fleet"
ROUNDS = "rounds"
DEAD_LETTERS = "dead-letters"

DAY_MS = 24 * 3600 * 1000
MAX_MESSAGE_BYTES = 1_000_000  # under the brokers' default limit of 1,048,588


@dataclass(frozen=True)
class TopicSpec:
    """One topic as it is created: `retention_ms` of -1 keeps for ever."""

    name: str
    partitions: int
    cleanup: str
    retention_ms: int

    @property
    def configs(self) -> dict[str, str]:
        return {"cleanup.policy": self.cleanup, "retention.ms": str(self.retention_ms)}


def topic_name(task: str, topic: str) -> str:
    """The full name of `topic` for `task`."""
    return f"{task}.{topic}"


def topic_specs(task: str, partitions: int = 4) -> list[TopicSpec]:
    """All topics of `task`. `scores` and `windows` have as many partitions as `events`:
    the worker publishes to the partition that it read from, so a device finds its scores where
    it sends its events."""
    week = 7 * DAY_MS
    rows = [
        (EVENTS, partitions, "delete", week),
        (SCORES, partitions, "delete", week),
        (WINDOWS, partitions, "delete", week),
        (RELEASES, 1, "compact", -1),
        (ARTIFACTS, 1, "delete", -1),
        (FLEET, 1, "compact", -1),
        (ROUNDS, 1, "delete", 4 * week),
        (DEAD_LETTERS, 1, "delete", 4 * week),
    ]
    return [TopicSpec(topic_name(task, name), n, policy, keep) for name, n, policy, keep in rows]
